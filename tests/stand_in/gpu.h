// The CUDA driver that TensorRT's stand-in runs on: NVIDIA's, or the stand-in for it.
#pragma once

#include <dlfcn.h>

#include <cstdint>

#include "stand_in.h"

namespace stand_in {

struct Driver {
    int (*init)(unsigned);
    int (*device_count)(int*);
    int (*device_attribute)(int*, int, int);
    int (*current)(void**);
    int (*host_alloc)(void**, size_t, unsigned);
    int (*host_free)(void*);
    int (*address_range)(uint64_t*, size_t*, uint64_t);
    int (*pointer_attribute)(void*, int, uint64_t);
    int (*to_device)(uint64_t, const void*, size_t, void*);
    int (*to_host)(void*, uint64_t, size_t, void*);
    int (*host_function)(void*, void (*)(void*), void*);
    int (*synchronize)(void*);
    int (*memory)(size_t*, size_t*);
    int (*capturing)(void*, int*);
};

// Null where there is no driver or no GPU.
inline const Driver* driver() {
    static const Driver* found = []() -> const Driver* {
        void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
        if (!library) return nullptr;
        static Driver driver;
        auto take = [&](auto& to, const char* name) {
            to = reinterpret_cast<std::remove_reference_t<decltype(to)>>(dlsym(library, name));
            if (!to) refuse(std::string("the CUDA driver has no ") + name);
        };
        take(driver.init, "cuInit");
        take(driver.device_count, "cuDeviceGetCount");
        take(driver.device_attribute, "cuDeviceGetAttribute");
        take(driver.current, "cuCtxGetCurrent");
        take(driver.host_alloc, "cuMemHostAlloc");
        take(driver.host_free, "cuMemFreeHost");
        take(driver.address_range, "cuMemGetAddressRange_v2");
        take(driver.pointer_attribute, "cuPointerGetAttribute");
        take(driver.to_device, "cuMemcpyHtoDAsync_v2");
        take(driver.to_host, "cuMemcpyDtoHAsync_v2");
        take(driver.host_function, "cuLaunchHostFunc");
        take(driver.synchronize, "cuStreamSynchronize");
        take(driver.memory, "cuMemGetInfo_v2");
        take(driver.capturing, "cuStreamIsCapturing");
        int count = 0;
        if (driver.init(0) != 0 || driver.device_count(&count) != 0 || count == 0) return nullptr;
        return &driver;
    }();
    return found;
}

// Compute capability of the GPU, 89 for 8.9.
inline int gpu_capability() {
    int major = 0, minor = 0;
    if (driver()) {
        driver()->device_attribute(&major, 75, 0);
        driver()->device_attribute(&minor, 76, 0);
    }
    return major * 10 + minor;
}

// TensorRT works on the GPU that is current; without one it would fail in ways of its own.
inline void needs_context(const char* call) {
    void* context = nullptr;
    if (!driver() || driver()->current(&context) != 0 || !context)
        refuse(std::string(call) + " was called on a thread on which no CUDA context is current");
}

// Whether the driver refuses everything: then nothing can be waited for any more.
inline bool gpu_is_lost() {
    size_t free = 0, total = 0;
    return driver()->memory(&free, &total) != 0;
}

} // namespace stand_in
