// Breaks one rule of the interfaces that are stood in for, by its name: `misuse CASE [PLAN]` must end with a sentence.
// The plan is of the embedded model, with one input `input` and one output `logits`, or for `values-outside` of `reshaped`.
#include <dlfcn.h>

#include <functional>
#include <fstream>
#include <iterator>
#include <map>
#include <vector>

#include <NvInfer.h>

#include "stand_in.h"

namespace {

template <class F> F from(const char* library, const char* name) {
    void* opened = dlopen(library, RTLD_NOW | RTLD_GLOBAL);
    void* found = opened ? dlsym(opened, name) : nullptr;
    if (!found) {
        std::fprintf(stderr, "%s of %s is missing: %s\n", name, library, dlerror());
        std::exit(3);
    }
    return reinterpret_cast<F>(found);
}

template <class... A> void cuda(const char* name, A... arguments) {
    int status = from<int (*)(A...)>("libcuda.so.1", name)(arguments...);
    if (status != 0) {
        std::fprintf(stderr, "%s returned %d\n", name, status);
        std::exit(3);
    }
}

struct Logger : nvinfer1::ILogger {
    void log(Severity severity, const char* words) noexcept override {
        if (severity <= Severity::kERROR) std::fprintf(stderr, "logged: %s\n", words);
    }
} logger;

void* stream;

uint64_t device(size_t bytes) {
    uint64_t address;
    cuda("cuMemAlloc_v2", &address, bytes);
    return address;
}

char* pinned(size_t bytes) {
    void* address;
    cuda("cuMemHostAlloc", &address, bytes, 0u);
    return static_cast<char*>(address);
}

void to_host(void* to, uint64_t from, size_t bytes) { cuda("cuMemcpyDtoHAsync_v2", to, from, bytes, stream); }

struct Run {
    nvinfer1::IRuntime* runtime;
    nvinfer1::ICudaEngine* engine;
    nvinfer1::IExecutionContext* context;
};

Run run(const char* path) {
    auto make = from<void* (*)(void*, int)>(LIBRARY, "createInferRuntime_INTERNAL");
    auto* runtime = static_cast<nvinfer1::IRuntime*>(make(&logger, NV_TENSORRT_VERSION));
    std::ifstream file(path, std::ios::binary);
    std::string bytes{std::istreambuf_iterator<char>(file), {}};
    auto* engine = runtime->deserializeCudaEngine(bytes.data(), bytes.size());
    if (!engine) std::exit(3);
    return {runtime, engine, engine->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kSTATIC)};
}

const size_t INPUT = 3 * 64 * 64 * 4;

void shape(const Run& run) { run.context->setInputShape("input", nvinfer1::Dims4{1, 3, 64, 64}); }

void addresses(const Run& run, size_t input, size_t output) {
    run.context->setTensorAddress("input", reinterpret_cast<void*>(device(input)));
    run.context->setTensorAddress("logits", reinterpret_cast<void*>(device(output)));
}

void enqueue(const Run& run) { run.context->enqueueV3(static_cast<cudaStream_t>(stream)); }

} // namespace

int main(int count, char** arguments) {
    const char* plan = count > 2 ? arguments[2] : "";
    const std::map<std::string, std::function<void()>> cases = {
        {"nothing", [&] {
             auto one = run(plan);
             shape(one);
             addresses(one, INPUT, 4096);
             enqueue(one);
             cuda("cuStreamSynchronize", stream);
             delete one.context;
             delete one.engine;
             delete one.runtime;
         }},
        {"never-allocated", [] { to_host(pinned(8), 0x1234, 8); }},
        {"too-small", [] { to_host(pinned(8), device(4), 8); }},
        {"freed", [] {
             uint64_t gone = device(8);
             cuda("cuMemFree_v2", gone);
             to_host(pinned(8), gone, 8);
         }},
        {"freed-twice", [] {
             uint64_t gone = device(8);
             cuda("cuMemFree_v2", gone);
             cuda("cuMemFree_v2", gone);
         }},
        {"wrong-side", [] { to_host(pinned(8), reinterpret_cast<uint64_t>(pinned(8)), 8); }},
        {"touched-by-host", [] { *reinterpret_cast<volatile char*>(device(8)) = 1; }},
        {"read-too-early", [] {
             char* here = pinned(8);
             to_host(here, device(8), 8);
             std::printf("%d\n", *static_cast<volatile char*>(here));
         }},
        {"freed-too-early", [] {
             char* here = pinned(8);
             to_host(here, device(8), 8);
             cuda("cuMemFreeHost", static_cast<void*>(here));
         }},
        {"open-capture", [] { cuda("cuStreamBeginCapture_v2", stream, 1); }},
        {"driver-in-host-function", [] {
             cuda("cuLaunchHostFunc", stream, static_cast<void (*)(void*)>([](void*) { device(8); }), static_cast<void*>(nullptr));
             cuda("cuStreamSynchronize", stream);
         }},
        {"no-context", [&] {
             cuda("cuCtxSetCurrent", static_cast<void*>(nullptr));
             run(plan);
         }},
        {"no-shape", [&] {
             auto one = run(plan);
             addresses(one, INPUT, 4096);
             enqueue(one);
         }},
        {"shape-outside", [&] {
             auto one = run(plan);
             shape(one);
             addresses(one, INPUT, 4096);
             one.context->setInputShape("input", nvinfer1::Dims4{1000, 3, 64, 64});
             enqueue(one);
         }},
        {"values-outside", [&] {
             auto one = run(plan);
             int64_t to[] = {9, 1};
             one.context->setInputShape("x", nvinfer1::Dims2{2, 4});
             one.context->setTensorAddress("to", to);
             enqueue(one);
         }},
        {"other-context", [&] {
             auto one = run(plan);
             shape(one);
             Run other = one;
             other.context = one.engine->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kSTATIC);
             addresses(other, INPUT, 4096);
             enqueue(other);
         }},
        {"no-address", [&] {
             auto one = run(plan);
             shape(one);
             enqueue(one);
         }},
        {"small-tensor", [&] {
             auto one = run(plan);
             shape(one);
             addresses(one, INPUT - 4, 4096);
             enqueue(one);
         }},
        {"host-tensor", [&] {
             auto one = run(plan);
             shape(one);
             addresses(one, INPUT, 4096);
             one.context->setTensorAddress("input", pinned(INPUT));
             enqueue(one);
         }},
        {"unknown-tensor", [&] { run(plan).context->setInputShape("other", nvinfer1::Dims4{1, 3, 64, 64}); }},
        {"runtime-gone", [&] {
             auto one = run(plan);
             delete one.runtime;
             one.engine->getTensorShape("input");
         }},
        {"engine-gone", [&] {
             auto one = run(plan);
             delete one.engine;
             shape(one);
         }},
        {"context-in-flight", [&] {
             auto one = run(plan);
             shape(one);
             addresses(one, INPUT, 4096);
             enqueue(one);
             delete one.context;
         }},
        {"not-stood-in-for", [&] { run(plan).engine->isRefittable(); }},
    };
    auto found = count > 1 ? cases.find(arguments[1]) : cases.end();
    if (found == cases.end()) return 2;
    cuda("cuInit", 0u);
    void* context;
    cuda("cuDevicePrimaryCtxRetain", &context, 0);
    cuda("cuCtxSetCurrent", context);
    cuda("cuStreamCreate", &stream, 1u);
    found->second();
    return 0;
}
