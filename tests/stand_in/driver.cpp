// A stand-in for NVIDIA's CUDA driver, `libcuda.so.1`: the functions that calib calls, over host memory.
//
// What is put on a stream runs when something waits for it and never earlier, so that whoever forgets to wait finds
// memory that nobody has written. One lock holds for everything: order is the order of the calls.
#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "stand_in.h"

using namespace stand_in;

namespace {

enum Result {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    LAUNCH_FAILED = 719,
    NOT_PERMITTED = 800,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_ISOLATION = 905,
    UNKNOWN = 999,
};

struct Operation {
    std::vector<Span> spans;
    std::function<void()> run;
};

struct Stream {
    std::deque<std::pair<uint64_t, std::shared_ptr<Operation>>> queue;
    uint64_t last = 0, executed = 0;
    bool capturing = false, invalid = false;
    std::vector<std::shared_ptr<Operation>> captured;
};

struct Event {
    bool timed = true, recorded = false, done = false;
    Stream* stream = nullptr;
    uint64_t number = 0;
    std::chrono::steady_clock::time_point at;
};

struct Graph {
    std::vector<std::shared_ptr<Operation>> operations;
};

struct Module {
    std::string image;
};

struct Function {
    std::string name;
};

int context_object; // its address is the primary context
thread_local void* current = nullptr;
thread_local bool in_host_function = false;
bool initialized = false, vanished = false;
int sticky = 0; // a kernel that failed spoils the context
int retained = 0;

std::recursive_mutex& all() {
    static auto* mutex = new std::recursive_mutex;
    return *mutex;
}

// What lives; handles are checked against these.
template <class T> std::set<T*>& living() {
    static auto* set = new std::set<T*>;
    return *set;
}

template <class T> T& alive(void* handle, const char* call) {
    T* object = static_cast<T*>(handle);
    if (!living<T>().count(object)) refuse(std::string(call) + " with a handle that is not, or no longer, valid");
    return *object;
}

// The stream that null means is one of its own here; calib makes its own.
Stream& stream_of(void* handle, const char* call) {
    if (!handle) refuse(std::string(call) + " on the default stream");
    return alive<Stream>(handle, call);
}

// Orders `fail=FUNCTION:N:CODE` (the N-th call returns CODE) and `vanish=FUNCTION:N` (from then on every call fails).
int called(const char* function) {
    static auto* calls = new std::map<std::string, long long>;
    if (in_host_function) refuse(std::string("a host function called ") + function);
    long long count = ++(*calls)[function];
    auto meant = [&](const char* key, long long* code) {
        const std::string* order = stand_in::order(key);
        if (!order || order->compare(0, order->find(':'), function) != 0) return false;
        std::string rest = order->substr(order->find(':') + 1);
        *code = UNKNOWN;
        if (rest.find(':') != std::string::npos) *code = std::atoll(rest.c_str() + rest.find(':') + 1);
        return std::atoll(rest.c_str()) == count;
    };
    long long code = 0;
    if (meant("vanish", &code)) vanished = true;
    if (vanished) return UNKNOWN;
    if (meant("fail", &code)) return static_cast<int>(code);
    return sticky;
}

// Everything but a few calls needs a context.
int in_context(const char* function) {
    if (!initialized) return NOT_INITIALIZED;
    if (int error = called(function)) return error;
    return current ? SUCCESS : INVALID_CONTEXT;
}

#define LOCKED std::lock_guard<std::recursive_mutex> guard(all())
#define IN_CONTEXT                                                                                                     \
    LOCKED;                                                                                                            \
    if (int error = in_context(__func__)) return error

void execute(Stream& stream, uint64_t until) {
    while (stream.executed < until && !stream.queue.empty()) {
        auto [number, operation] = stream.queue.front();
        stream.queue.pop_front();
        {
            Opened opened(operation->spans);
            operation->run();
        }
        done(operation->spans);
        stream.executed = number;
    }
}

void execute_all() {
    for (Stream* stream : living<Stream>()) execute(*stream, stream->last);
}

// Calls that must not happen while work is recorded spoil the recording.
bool spoils(Stream& stream) {
    if (stream.capturing) stream.invalid = true;
    return stream.capturing;
}

bool any_spoiled() {
    bool any = false;
    for (Stream* stream : living<Stream>()) any |= spoils(*stream);
    return any;
}

void put(Stream& stream, std::shared_ptr<Operation> operation) {
    if (stream.capturing) {
        stream.captured.push_back(std::move(operation));
        return;
    }
    ordered(operation->spans);
    stream.queue.emplace_back(++stream.last, std::move(operation));
}

void put(Stream& stream, std::vector<Span> spans, std::function<void()> run) {
    put(stream, std::make_shared<Operation>(Operation{std::move(spans), std::move(run)}));
}

// A copy. Pageable memory is copied before the call returns, as the driver does it.
int copy(Stream& stream, uint64_t to, uint64_t from, size_t bytes, bool to_device, bool from_device, const char* call) {
    if (bytes == 0) return SUCCESS;
    std::vector<Span> spans;
    bool pageable = false;
    auto side = [&](uint64_t address, bool device, bool written) {
        std::string what = std::string(call) + (written ? " to memory" : " from memory");
        Kind kind;
        bool known = kind_of(address, &kind);
        if (device || known) check(device ? Kind::device : Kind::pinned, address, bytes, what.c_str());
        if (device || known) spans.push_back({address, bytes, written});
        else pageable = true;
    };
    side(to, to_device, true);
    side(from, from_device, false);
    if (pageable && spoils(stream)) return CAPTURE_UNSUPPORTED;
    put(stream, spans, [=] { std::memcpy(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes); });
    if (pageable) execute(stream, stream.last);
    return SUCCESS;
}

struct AtExit {
    ~AtExit() {
        for (Stream* stream : living<Stream>())
            if (stream->capturing) refuse("the program ended with a capture left open");
    }
} at_exit;

int capability_here() {
    const std::string* order = stand_in::order("capability");
    return order ? capability(*order) : 89;
}

} // namespace

EXPORTED int cuInit(unsigned) {
    LOCKED;
    if (order("no-device")) return NO_DEVICE;
    if (int error = called(__func__)) return error;
    watch();
    initialized = true;
    return SUCCESS;
}

EXPORTED int cuDriverGetVersion(int* version) {
    *version = static_cast<int>(number_of("driver", 13000));
    return SUCCESS;
}

EXPORTED int cuDeviceGetCount(int* count) {
    LOCKED;
    if (!initialized) return NOT_INITIALIZED;
    *count = 1;
    return called(__func__);
}

EXPORTED int cuDeviceGet(int* device, int ordinal) {
    LOCKED;
    *device = 0;
    return ordinal == 0 ? called(__func__) : INVALID_DEVICE;
}

EXPORTED int cuDeviceGetName(char* name, int length, int) {
    LOCKED;
    std::snprintf(name, static_cast<size_t>(length), "stand-in for an NVIDIA GPU");
    return called(__func__);
}

EXPORTED int cuDeviceGetUuid_v2(unsigned char* uuid, int) {
    std::memset(uuid, 0, 16);
    return SUCCESS;
}

EXPORTED int cuDeviceTotalMem_v2(size_t* bytes, int) {
    LOCKED;
    *bytes = device_memory();
    return called(__func__);
}

EXPORTED int cuDeviceGetAttribute(int* value, int attribute, int) {
    LOCKED;
    switch (attribute) {
    case 16: *value = 4; break; // multiprocessors
    case 75: *value = capability_here() / 10; break;
    case 76: *value = capability_here() % 10; break;
    case 115: *value = order("no-pools") ? 0 : 1; break; // memory pools
    default: refuse("cuDeviceGetAttribute was asked for attribute " + text(attribute) + ", which it does not know");
    }
    return called(__func__);
}

EXPORTED int cuDevicePrimaryCtxRetain(void** context, int) {
    LOCKED;
    if (!initialized) return NOT_INITIALIZED;
    ++retained;
    *context = &context_object;
    return called(__func__);
}

EXPORTED int cuDevicePrimaryCtxRelease_v2(int) {
    LOCKED;
    if (--retained < 0) refuse("the primary context was released more often than it was retained");
    return SUCCESS;
}

EXPORTED int cuCtxGetCurrent(void** context) {
    *context = current;
    return initialized ? SUCCESS : NOT_INITIALIZED;
}

EXPORTED int cuCtxSetCurrent(void* context) {
    LOCKED;
    if (context && context != &context_object) refuse("cuCtxSetCurrent with a context that does not exist");
    current = context;
    return called(__func__);
}

EXPORTED int cuCtxSynchronize() {
    IN_CONTEXT;
    if (any_spoiled()) return CAPTURE_UNSUPPORTED;
    execute_all();
    return sticky;
}

EXPORTED int cuMemGetInfo_v2(size_t* free, size_t* total) {
    IN_CONTEXT;
    *free = free_device_memory();
    *total = device_memory();
    return SUCCESS;
}

EXPORTED int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
    IN_CONTEXT;
    if (any_spoiled()) return CAPTURE_UNSUPPORTED;
    if (bytes == 0) return INVALID_VALUE;
    *address = allocate(Kind::device, bytes);
    return *address ? SUCCESS : OUT_OF_MEMORY;
}

EXPORTED int cuMemAllocAsync(uint64_t* address, size_t bytes, void* stream) {
    IN_CONTEXT;
    if (spoils(stream_of(stream, __func__))) return CAPTURE_UNSUPPORTED;
    *address = allocate(Kind::device, bytes ? bytes : 1); // none is no error here, as in the driver
    return *address ? SUCCESS : OUT_OF_MEMORY;
}

EXPORTED int cuMemFree_v2(uint64_t address) {
    IN_CONTEXT;
    if (any_spoiled()) return CAPTURE_UNSUPPORTED;
    execute_all(); // it waits for the device
    give_back(Kind::device, address, __func__);
    return SUCCESS;
}

EXPORTED int cuMemFreeAsync(uint64_t address, void* handle) {
    IN_CONTEXT;
    Stream& stream = stream_of(handle, __func__);
    if (spoils(stream)) return CAPTURE_UNSUPPORTED;
    execute(stream, stream.last); // whatever else works on it then, nothing orders
    give_back(Kind::device, address, __func__);
    return SUCCESS;
}

EXPORTED int cuMemHostAlloc(void** address, size_t bytes, unsigned) {
    IN_CONTEXT;
    if (any_spoiled()) return CAPTURE_UNSUPPORTED;
    if (bytes == 0) return INVALID_VALUE;
    *address = reinterpret_cast<void*>(allocate(Kind::pinned, bytes));
    return *address ? SUCCESS : OUT_OF_MEMORY;
}

EXPORTED int cuMemFreeHost(void* address) {
    IN_CONTEXT;
    give_back(Kind::pinned, reinterpret_cast<uint64_t>(address), __func__);
    return SUCCESS;
}

EXPORTED int cuMemGetAddressRange_v2(uint64_t* begin, size_t* bytes, uint64_t address) {
    IN_CONTEXT;
    return device_range(address, begin, bytes) ? SUCCESS : INVALID_VALUE;
}

// Only the kind of memory, which is what is asked for here.
EXPORTED int cuPointerGetAttribute(void* value, int attribute, uint64_t address) {
    IN_CONTEXT;
    if (attribute != 2) refuse("cuPointerGetAttribute was asked for attribute " + text(attribute));
    Kind kind;
    if (!kind_of(address, &kind)) return INVALID_VALUE;
    *static_cast<unsigned*>(value) = kind == Kind::pinned ? 1 : 2;
    return SUCCESS;
}

EXPORTED int cuMemcpyHtoDAsync_v2(uint64_t to, const void* from, size_t bytes, void* stream) {
    IN_CONTEXT;
    return copy(stream_of(stream, __func__), to, reinterpret_cast<uint64_t>(from), bytes, true, false, __func__);
}

EXPORTED int cuMemcpyDtoHAsync_v2(void* to, uint64_t from, size_t bytes, void* stream) {
    IN_CONTEXT;
    return copy(stream_of(stream, __func__), reinterpret_cast<uint64_t>(to), from, bytes, false, true, __func__);
}

EXPORTED int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
    IN_CONTEXT;
    return copy(stream_of(stream, __func__), to, from, bytes, true, true, __func__);
}

EXPORTED int cuMemsetD8Async(uint64_t address, unsigned char value, size_t bytes, void* stream) {
    IN_CONTEXT;
    if (bytes == 0) return SUCCESS;
    check(Kind::device, address, bytes, __func__);
    put(stream_of(stream, __func__), {{address, bytes, true}},
        [=] { std::memset(reinterpret_cast<void*>(address), value, bytes); });
    return SUCCESS;
}

EXPORTED int cuStreamCreate(void** stream, unsigned) {
    IN_CONTEXT;
    auto* made = new Stream;
    living<Stream>().insert(made);
    *stream = made;
    return SUCCESS;
}

EXPORTED int cuStreamDestroy_v2(void* handle) {
    IN_CONTEXT;
    Stream& stream = stream_of(handle, __func__);
    if (stream.capturing) refuse("a stream was destroyed with a capture left open");
    execute(stream, stream.last);
    living<Stream>().erase(&stream);
    delete &stream;
    return SUCCESS;
}

EXPORTED int cuStreamSynchronize(void* handle) {
    IN_CONTEXT;
    Stream& stream = stream_of(handle, __func__);
    if (spoils(stream)) return CAPTURE_UNSUPPORTED;
    execute(stream, stream.last);
    return sticky;
}

EXPORTED int cuStreamQuery(void* handle) { return cuStreamSynchronize(handle); }

EXPORTED int cuStreamWaitEvent(void* handle, void* event_handle, unsigned) {
    IN_CONTEXT;
    Stream& stream = stream_of(handle, __func__);
    Event& event = alive<Event>(event_handle, __func__);
    if (!event.recorded) return SUCCESS;
    if (stream.capturing) {
        stream.invalid = true;
        return CAPTURE_ISOLATION;
    }
    Stream* other = event.stream;
    uint64_t number = event.number;
    if (other == &stream) return SUCCESS;
    put(stream, {}, [=] {
        if (living<Stream>().count(other)) execute(*other, number);
    });
    return SUCCESS;
}

EXPORTED int cuEventCreate(void** event, unsigned flags) {
    IN_CONTEXT;
    auto* made = new Event;
    made->timed = (flags & 2) == 0;
    living<Event>().insert(made);
    *event = made;
    return SUCCESS;
}

EXPORTED int cuEventDestroy_v2(void* handle) {
    IN_CONTEXT;
    Event& event = alive<Event>(handle, __func__);
    living<Event>().erase(&event);
    delete &event;
    return SUCCESS;
}

EXPORTED int cuEventRecord(void* handle, void* stream_handle) {
    IN_CONTEXT;
    Stream& stream = stream_of(stream_handle, __func__);
    Event* event = &alive<Event>(handle, __func__);
    uint64_t number = stream.last + 1;
    if (!stream.capturing) {
        event->recorded = true;
        event->done = false;
        event->stream = &stream;
        event->number = number;
    }
    put(stream, {}, [=] {
        // It may have been recorded again, or destroyed, before its turn came.
        if (!living<Event>().count(event) || event->number != number) return;
        event->at = std::chrono::steady_clock::now();
        event->done = true;
    });
    return SUCCESS;
}

EXPORTED int cuEventSynchronize(void* handle) {
    IN_CONTEXT;
    Event& event = alive<Event>(handle, __func__);
    if (!event.recorded) return SUCCESS;
    if (living<Stream>().count(event.stream)) execute(*event.stream, event.number);
    return sticky;
}

EXPORTED int cuEventQuery(void* handle) { return cuEventSynchronize(handle); }

EXPORTED int cuEventElapsedTime_v2(float* milliseconds, void* start_handle, void* end_handle) {
    IN_CONTEXT;
    Event& start = alive<Event>(start_handle, __func__);
    Event& end = alive<Event>(end_handle, __func__);
    if (!start.timed || !end.timed || !start.recorded || !end.recorded) return INVALID_HANDLE;
    if (!start.done || !end.done) return NOT_READY;
    *milliseconds = std::chrono::duration<float, std::milli>(end.at - start.at).count();
    return SUCCESS;
}

EXPORTED int cuLaunchHostFunc(void* handle, void (*function)(void*), void* argument) {
    IN_CONTEXT;
    put(stream_of(handle, __func__), {}, [=] {
        AllOpened opened(Kind::pinned);
        in_host_function = true;
        function(argument);
        in_host_function = false;
    });
    return SUCCESS;
}

EXPORTED int cuStreamBeginCapture_v2(void* handle, int) {
    IN_CONTEXT;
    Stream& stream = stream_of(handle, __func__);
    if (stream.capturing) refuse("a capture was begun on a stream with a capture left open");
    stream.capturing = true;
    stream.invalid = false;
    stream.captured.clear();
    return SUCCESS;
}

EXPORTED int cuStreamIsCapturing(void* handle, int* status) {
    IN_CONTEXT;
    Stream& stream = stream_of(handle, __func__);
    *status = stream.capturing ? (stream.invalid ? 2 : 1) : 0;
    return SUCCESS;
}

EXPORTED int cuStreamEndCapture(void* handle, void** graph) {
    LOCKED;
    Stream& stream = stream_of(handle, __func__);
    if (!stream.capturing) refuse("a capture was ended that was not begun");
    stream.capturing = false;
    *graph = nullptr;
    if (int error = in_context(__func__)) return error;
    if (stream.invalid) return CAPTURE_INVALIDATED;
    auto* made = new Graph{stream.captured};
    living<Graph>().insert(made);
    *graph = made;
    return SUCCESS;
}

// An executable graph is a copy of the graph.
EXPORTED int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    IN_CONTEXT;
    auto* made = new Graph(alive<Graph>(graph, __func__));
    living<Graph>().insert(made);
    *executable = made;
    return SUCCESS;
}

EXPORTED int cuGraphLaunch(void* executable, void* handle) {
    IN_CONTEXT;
    Stream& stream = stream_of(handle, __func__);
    for (auto& operation : alive<Graph>(executable, __func__).operations) put(stream, operation);
    return SUCCESS;
}

EXPORTED int cuGraphDestroy(void* graph) {
    IN_CONTEXT;
    Graph& gone = alive<Graph>(graph, __func__);
    living<Graph>().erase(&gone);
    delete &gone;
    return SUCCESS;
}

EXPORTED int cuGraphExecDestroy(void* graph) { return cuGraphDestroy(graph); }

// The compiler's text (PTX), of which only the names of the kernels are used.
EXPORTED int cuModuleLoadData(void** module, const void* image) {
    IN_CONTEXT;
    auto* made = new Module{static_cast<const char*>(image)};
    if (made->image.find(".version") == std::string::npos) return delete made, INVALID_IMAGE;
    living<Module>().insert(made);
    *module = made;
    return SUCCESS;
}

EXPORTED int cuModuleUnload(void* module) {
    IN_CONTEXT;
    Module& gone = alive<Module>(module, __func__);
    living<Module>().erase(&gone);
    delete &gone;
    return SUCCESS;
}

EXPORTED int cuModuleGetFunction(void** function, void* module, const char* name) {
    IN_CONTEXT;
    std::string entry = std::string(".entry ") + name + "(";
    if (alive<Module>(module, __func__).image.find(entry) == std::string::npos) return NOT_FOUND;
    auto* made = new Function{name};
    living<Function>().insert(made);
    *function = made;
    return SUCCESS;
}

EXPORTED int cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                            unsigned block_y, unsigned block_z, unsigned shared_bytes, void* handle, void** parameters,
                            void** extra) {
    IN_CONTEXT;
    const std::string& name = alive<Function>(function, __func__).name;
    if (grid_y * grid_z * block_y * block_z != 1 || shared_bytes != 0 || extra)
        refuse("kernel `" + name + "` was launched in a way that the stand-in does not know");
    auto kernel = prepare_kernel(name, grid_x, block_x, parameters);
    if (!kernel) refuse("kernel `" + name + "` is none that the stand-in runs");
    put(stream_of(handle, __func__), {}, [=] {
        AllOpened opened(Kind::device);
        kernel();
    });
    if (order("kernel-fails")) sticky = LAUNCH_FAILED;
    return SUCCESS;
}

// NVIDIA's compiler library asks for tables that only their own driver has.
EXPORTED int cuGetExportTable(const void** table, const void*) {
    *table = nullptr;
    return NOT_FOUND;
}

EXPORTED int cuGetErrorString(int error, const char** words) {
    static auto* known = new std::map<int, const char*>{
        {INVALID_VALUE, "invalid argument"},
        {OUT_OF_MEMORY, "out of memory"},
        {NOT_INITIALIZED, "initialization error"},
        {NO_DEVICE, "no CUDA-capable device is detected"},
        {INVALID_CONTEXT, "invalid device context"},
        {INVALID_HANDLE, "invalid resource handle"},
        {LAUNCH_FAILED, "unspecified launch failure"},
        {CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"},
        {CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"},
        {UNKNOWN, "unknown error"},
    };
    auto found = known->find(error);
    *words = found == known->end() ? "an error of the stand-in" : found->second;
    return SUCCESS;
}

EXPORTED int cuGetErrorName(int error, const char** name) { return cuGetErrorString(error, name); }
