#include "inference.h"

#include <dlfcn.h>

#include "stand_in.h"

namespace stand_in {
namespace {

// Places in the table of functions that `OrtGetApiBase()->GetApi` gives. The table only ever grows at its end.
enum Place {
    GET_ERROR_MESSAGE = 2,
    CREATE_ENV = 3,
    CREATE_SESSION_FROM_ARRAY = 8,
    RUN = 9,
    CREATE_SESSION_OPTIONS = 10,
    SET_GRAPH_OPTIMIZATION_LEVEL = 23,
    SET_INTRA_OP_THREADS = 24,
    SESSION_OUTPUT_TYPE = 34,
    CREATE_TENSOR_WITH_DATA = 49,
    GET_TENSOR_DATA = 51,
    CAST_TO_TENSOR_INFO = 55,
    GET_ELEMENT_TYPE = 60,
    GET_RANK = 61,
    GET_EXTENTS = 62,
    GET_TYPE_AND_SHAPE = 65,
    CREATE_CPU_MEMORY_INFO = 69,
    RELEASE_STATUS = 93,
    RELEASE_SESSION = 95,
    RELEASE_VALUE = 96,
    RELEASE_TYPE_INFO = 98,
    RELEASE_TYPE_AND_SHAPE = 99,
    RELEASE_SESSION_OPTIONS = 100,
};

using Status = void*;

void* const* table() {
    static void* const* found = [] {
        struct Base {
            void* const* (*get_api)(uint32_t);
            const char* (*version)();
        };
        const char* named = std::getenv("ORT_DYLIB_PATH");
        void* library = dlopen(named && *named ? named : ORT_LIBRARY, RTLD_NOW | RTLD_LOCAL);
        if (!library) refuse(std::string("ONNX Runtime cannot be loaded: ") + dlerror());
        auto base = reinterpret_cast<const Base* (*)()>(dlsym(library, "OrtGetApiBase"));
        void* const* table = base ? base()->get_api(16) : nullptr;
        if (!table) refuse("ONNX Runtime has no interface of version 16");
        return table;
    }();
    return found;
}

template <class... A> Status call(Place place, A... arguments) {
    return reinterpret_cast<Status (*)(A...)>(table()[place])(arguments...);
}

template <class... A> void release(Place place, A... arguments) {
    reinterpret_cast<void (*)(A...)>(table()[place])(arguments...);
}

// The words of a failure; empty after a success.
std::string said(Status status) {
    if (!status) return "";
    std::string words = reinterpret_cast<const char* (*)(Status)>(table()[GET_ERROR_MESSAGE])(status);
    release(RELEASE_STATUS, status);
    return words.empty() ? "an error without words" : words;
}

void must(Status status) {
    std::string words = said(status);
    if (!words.empty()) refuse("ONNX Runtime: " + words);
}

void* environment() {
    static void* made = [] {
        void* made = nullptr;
        must(call(CREATE_ENV, 3, "stand-in", &made));
        return made;
    }();
    return made;
}

std::vector<int64_t> extents_of(void* info) {
    size_t rank = 0;
    must(call(GET_RANK, info, &rank));
    std::vector<int64_t> extents(rank);
    must(call(GET_EXTENTS, info, extents.data(), rank));
    return extents;
}

} // namespace

std::unique_ptr<Session> Session::open(const std::string& model, std::string* reason) {
    void* options = nullptr;
    must(call(CREATE_SESSION_OPTIONS, &options));
    // Exactly what the nodes say: Q/DQ stays where it is.
    must(call(SET_GRAPH_OPTIMIZATION_LEVEL, options, 0));
    must(call(SET_INTRA_OP_THREADS, options, 1));
    std::unique_ptr<Session> made(new Session);
    *reason = said(call(CREATE_SESSION_FROM_ARRAY, environment(), model.data(), model.size(), options, &made->session));
    release(RELEASE_SESSION_OPTIONS, options);
    if (!reason->empty()) return nullptr;
    return made;
}

Session::~Session() {
    if (session) release(RELEASE_SESSION, session);
}

std::vector<int64_t> Session::output_extents(size_t index, int* type) const {
    void *kind = nullptr, *info = nullptr;
    must(call(SESSION_OUTPUT_TYPE, session, index, &kind));
    must(call(CAST_TO_TENSOR_INFO, kind, &info));
    std::vector<int64_t> extents = extents_of(info);
    must(call(GET_ELEMENT_TYPE, info, type));
    release(RELEASE_TYPE_INFO, kind);
    return extents;
}

std::vector<Array> Session::run(const std::vector<Array>& inputs, const std::vector<std::string>& outputs,
                                std::string* reason) const {
    static void* memory = [] {
        void* memory = nullptr;
        must(call(CREATE_CPU_MEMORY_INFO, 0, 0, &memory));
        return memory;
    }();
    std::vector<void*> given(inputs.size()), made(outputs.size(), nullptr);
    std::vector<const char*> given_names, made_names;
    for (size_t i = 0; i < inputs.size(); i++) {
        const Array& input = inputs[i];
        must(call(CREATE_TENSOR_WITH_DATA, memory, const_cast<char*>(input.bytes.data()), input.bytes.size(),
                  input.extents.data(), input.extents.size(), input.type, &given[i]));
        given_names.push_back(input.name.c_str());
    }
    for (const std::string& output : outputs) made_names.push_back(output.c_str());
    *reason = said(call(RUN, session, static_cast<void*>(nullptr), given_names.data(), given.data(), given.size(),
                        made_names.data(), made_names.size(), made.data()));
    std::vector<Array> found;
    for (size_t i = 0; reason->empty() && i < outputs.size(); i++) {
        void *info = nullptr, *data = nullptr;
        must(call(GET_TYPE_AND_SHAPE, made[i], &info));
        Array output{outputs[i], 0, extents_of(info), ""};
        must(call(GET_ELEMENT_TYPE, info, &output.type));
        release(RELEASE_TYPE_AND_SHAPE, info);
        must(call(GET_TENSOR_DATA, made[i], &data));
        size_t count = 1;
        for (int64_t extent : output.extents) count *= static_cast<size_t>(extent);
        // Eight bytes at most: nothing larger is an output.
        static const size_t SIZES[] = {0, 4, 1, 1, 2, 2, 4, 8, 0, 1, 2, 8, 4, 8, 8, 16, 2, 1};
        output.bytes.assign(static_cast<const char*>(data), count * SIZES[output.type]);
        found.push_back(std::move(output));
    }
    for (void* value : given) release(RELEASE_VALUE, value);
    for (void* value : made)
        if (value) release(RELEASE_VALUE, value);
    return found;
}

} // namespace stand_in
