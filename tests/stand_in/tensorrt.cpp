// A stand-in for TensorRT: its builder keeps the ONNX model, its runtime runs that through ONNX Runtime on the CPU, in the
// order of the stream. Nothing that it gives is a result or a time of TensorRT.
#include <atomic>
#include <chrono>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "gpu.h"
#include "inference.h"
#include "layers.h"
#include "onnx.h"
#include "plan.h"
#include "refusals.h"

using namespace nvinfer1;
using namespace stand_in;

namespace {

const bool RTX = NV_TENSORRT_MAJOR == 1;

ILogger* the_logger = nullptr;

void say(ILogger::Severity severity, const std::string& words) {
    if (the_logger) the_logger->log(severity, words.c_str());
}

// Logs an error; false, and a null pointer.
struct Failed {
    operator bool() const { return false; }
    template <class T> operator T*() const { return nullptr; }
};
Failed error(const std::string& words) {
    say(ILogger::Severity::kERROR, words);
    return {};
}

void rest_for(const char* key) { std::this_thread::sleep_for(std::chrono::milliseconds(number_of(key, 0))); }

DataType type_of(int onnx) {
    switch (onnx) {
    case 1: return DataType::kFLOAT;
    case 2: return DataType::kUINT8;
    case 3: return DataType::kINT8;
    case 6: return DataType::kINT32;
    case 7: return DataType::kINT64;
    case 9: return DataType::kBOOL;
    case 10: return DataType::kHALF;
    case 16: return DataType::kBF16;
    case 17: return DataType::kFP8;
    default: refuse("ONNX's type " + text(onnx) + " has no counterpart in TensorRT");
    }
}

Dims dims_of(const Extents& extents) {
    Dims dims{};
    dims.nbDims = static_cast<int32_t>(extents.size());
    for (size_t i = 0; i < extents.size() && i < Dims::MAX_DIMS; i++) dims.d[i] = extents[i];
    return dims;
}

Dims dims_of_none() {
    Dims dims{};
    dims.nbDims = -1;
    return dims;
}

Extents extents_of(const Dims& dims) { return Extents(dims.d, dims.d + dims.nbDims); }

bool open(const Extents& extents) {
    for (int64_t extent : extents)
        if (extent < 0) return true;
    return false;
}

size_t bytes_of(int type, const Extents& extents) {
    size_t bytes = size_of_type(type);
    for (int64_t extent : extents) bytes *= static_cast<size_t>(extent);
    return bytes;
}

// An object of the interface over its implementation.
template <class Interface, class Implementation> struct Made : Interface {
    Implementation implementation;
    template <class... A> explicit Made(A&&... a) : implementation(std::forward<A>(a)...) {
        this->mImpl = &implementation;
    }
};

struct Bytes : apiv::RefusedVHostMemory {
    std::string bytes;
    explicit Bytes(std::string bytes) : bytes(std::move(bytes)) {}
    void* data() const noexcept override { return const_cast<char*>(bytes.data()); }
    std::size_t size() const noexcept override { return bytes.size(); }
    DataType type() const noexcept override { return DataType::kINT8; }
};
using HostMemory = Made<IHostMemory, Bytes>;

// ---------------------------------------------------------------------------------------------------------- builder

// Integer inputs whose values say what shape something has, directly or through other nodes: TensorRT wants those in host
// memory.
std::set<std::string> shape_inputs(const Model& model) {
    static const std::map<std::string, std::vector<size_t>> PLACES = {
        {"Reshape", {1}}, {"Expand", {1}}, {"Tile", {1}}, {"ConstantOfShape", {0}}, {"Resize", {3}}, {"Slice", {1, 2, 3, 4}},
        {"Range", {0, 1, 2}}, {"TopK", {1}}, {"Pad", {1, 3}}, {"Unsqueeze", {1}}, {"Squeeze", {1}}};
    std::set<std::string> decide, found;
    for (size_t i = model.nodes.size(); i-- > 0;) {
        const Node& node = model.nodes[i];
        if (auto places = PLACES.find(node.op); places != PLACES.end())
            for (size_t place : places->second)
                if (place < node.inputs.size()) decide.insert(node.inputs[place]);
        // These take a tensor's shape, whatever its values are.
        if (node.op == "Shape" || node.op == "Size") continue;
        for (const std::string& output : node.outputs)
            if (decide.count(output)) decide.insert(node.inputs.begin(), node.inputs.end());
    }
    for (const Value& input : model.inputs)
        if (decide.count(input.name) && (input.type == 6 || input.type == 7)) found.insert(input.name);
    return found;
}

struct NetworkInput : apiv::RefusedVTensor {
    std::string name;
    Extents extents;
    bool holds_a_shape;
    NetworkInput(const Value& value, bool holds_a_shape) : name(value.name), extents(value.extents), holds_a_shape(holds_a_shape) {}
    char const* getName() const noexcept override { return name.c_str(); }
    Dims getDimensions() const noexcept override { return dims_of(extents); }
    bool isShapeTensor() const noexcept override { return holds_a_shape; }
};

struct Network : apiv::RefusedVNetworkDefinition {
    std::string bytes;
    Model model;
    std::deque<Made<ITensor, NetworkInput>> inputs;

    int32_t getNbInputs() const noexcept override { return static_cast<int32_t>(inputs.size()); }
    ITensor* getInput(int32_t index) const noexcept override {
        return const_cast<Made<ITensor, NetworkInput>*>(&inputs.at(static_cast<size_t>(index)));
    }
};
using NetworkDefinition = Made<INetworkDefinition, Network>;

struct Profile : apiv::RefusedVOptimizationProfile {
    Triples shapes, values;

    bool setDimensions(char const* input, OptProfileSelector select, Dims const& dims) noexcept override {
        shapes[input][static_cast<size_t>(select)] = extents_of(dims);
        return true;
    }
    bool setShapeValuesV2(char const* input, OptProfileSelector select, int64_t const* given, int32_t count) noexcept override {
        for (const Extents& other : values[input])
            if (!other.empty() && other.size() != static_cast<size_t>(count)) return error("setShapeValuesV2: another number of values");
        values[input][static_cast<size_t>(select)].assign(given, given + count);
        return true;
    }
    bool isValid() const noexcept override {
        for (const Triples* triples : {&shapes, &values})
            for (const auto& [name, triple] : *triples)
                for (size_t i = 0; i < triple[0].size(); i++)
                    if (triple[1].size() != triple[0].size() || triple[2].size() != triple[0].size() ||
                        triple[0][i] > triple[1][i] || triple[1][i] > triple[2][i])
                        return false;
        return true;
    }
};
using OptimizationProfile = Made<IOptimizationProfile, Profile>;

struct Config : apiv::RefusedVBuilderConfig {
    ProfilingVerbosity verbosity = ProfilingVerbosity::kLAYER_NAMES_ONLY;
    Profile profile;
    IProgressMonitor* monitor = nullptr;
    std::vector<int> capabilities;
    std::set<BuilderFlag> flags;
    bool for_others = false;
    size_t workspace = 0;
    int32_t level = -1;

    std::string told() const {
        std::string text = "workspace " + stand_in::text(static_cast<long long>(workspace)) + ", level " + stand_in::text(level);
        if (flags.count(BuilderFlag::kTF32)) text += ", TF32";
        if (flags.count(BuilderFlag::kVERSION_COMPATIBLE)) text += ", version compatible";
        if (for_others) text += ", hardware compatible";
        for (int capability : capabilities) text += ", for " + stand_in::text(capability);
        return text;
    }

    void setProfilingVerbosity(ProfilingVerbosity value) noexcept override { verbosity = value; }
    void setFlag(BuilderFlag flag) noexcept override { flags.insert(flag); }
    void clearFlag(BuilderFlag flag) noexcept override { flags.erase(flag); }
    void setMemoryPoolLimit(MemoryPoolType, std::size_t bytes) noexcept override { workspace = bytes; }
    void setBuilderOptimizationLevel(int32_t value) noexcept override {
        level = value;
        if (level < 0 || level > 5) refuse("the builder's optimization level was set to " + text(level));
    }
    void setHardwareCompatibilityLevel(HardwareCompatibilityLevel) noexcept override { for_others = true; }
    void setProgressMonitor(IProgressMonitor* value) noexcept override { monitor = value; }
    int32_t addOptimizationProfile(IOptimizationProfile const* added) noexcept override;
#if NV_TENSORRT_MAJOR == 1
    bool setNbComputeCapabilities(int32_t count) noexcept override {
        capabilities.assign(static_cast<size_t>(count), 0);
        return true;
    }
    bool setComputeCapability(ComputeCapability value, int32_t index) noexcept override {
        if (static_cast<size_t>(index) >= capabilities.size()) refuse("more compute capabilities were set than announced");
        capabilities[static_cast<size_t>(index)] = static_cast<int>(value);
        return true;
    }
#endif
};
using BuilderConfig = Made<IBuilderConfig, Config>;

int32_t Config::addOptimizationProfile(IOptimizationProfile const* added) noexcept {
    const auto& given = static_cast<const OptimizationProfile*>(added)->implementation;
    if (!given.isValid()) return error("the profile is not min <= opt <= max"), -1;
    profile.shapes = given.shapes;
    profile.values = given.values;
    return 0;
}

// What runs a model; empty where ONNX Runtime does not on the CPU.
std::unique_ptr<Session> session_of(const std::string& model, std::string* reason) {
    std::string bytes = without_types(model);
    std::unique_ptr<Session> session = Session::open(bytes, reason);
    return session ? std::move(session) : Session::open(in_floats(bytes), reason);
}

// Why the likely shapes and values of the profile do not go together, as the builder finds out where inputs hold shapes.
std::string misfit(const Network& network, const Profile& profile) {
    std::string reason;
    std::unique_ptr<Session> session = session_of(network.bytes, &reason);
    if (!session) return "";
    std::vector<Array> inputs;
    for (const Value& input : network.model.inputs) {
        auto shape = profile.shapes.find(input.name);
        auto values = profile.values.find(input.name);
        const Extents& extents = shape == profile.shapes.end() ? input.extents : shape->second[1];
        std::string bytes(bytes_of(input.type, extents), '\0');
        for (size_t i = 0; values != profile.values.end() && i < values->second[1].size(); i++)
            std::memcpy(bytes.data() + i * size_of_type(input.type), &values->second[1][i], size_of_type(input.type)); // the lower half of an INT32
        inputs.push_back({input.name, input.type, extents, bytes});
    }
    session->run(inputs, {network.model.outputs[0].name}, &reason);
    return reason;
}

struct Builder : apiv::RefusedVBuilder {
    std::deque<OptimizationProfile> profiles; // which belong to it

    IBuilderConfig* createBuilderConfig() noexcept override {
        if (order("null-config")) return nullptr;
        return new BuilderConfig;
    }
    INetworkDefinition* createNetworkV2(NetworkDefinitionCreationFlags) noexcept override {
        if (order("null-network")) return nullptr;
        return new NetworkDefinition;
    }
    IOptimizationProfile* createOptimizationProfile() noexcept override {
        if (order("null-profile")) return nullptr;
        return &profiles.emplace_back();
    }
    IHostMemory* buildSerializedNetwork(INetworkDefinition& network_made, IBuilderConfig& config_made) noexcept override {
        const Network& network = static_cast<NetworkDefinition&>(network_made).implementation;
        const Config& config = static_cast<BuilderConfig&>(config_made).implementation;
        if (order("null-engine")) return nullptr;
        if (network.bytes.empty()) refuse("a network without a model was built");
        std::set<std::string> by_values = shape_inputs(network.model);
        for (const Value& input : network.model.inputs) {
            auto profile = config.profile.shapes.find(input.name);
            if (open(input.extents) && profile == config.profile.shapes.end())
                return error("IBuilder::buildSerializedNetwork: Error Code 4: Internal Error (Network has dynamic or shape "
                             "inputs, but no optimization profile has been defined.)");
            auto values = config.profile.values.find(input.name);
            bool has_values = values != config.profile.values.end();
            if (by_values.count(input.name) == 0) {
                if (has_values) return error("Error Code 4: Internal Error (" + input.name + " is no shape input, and has values in the profile)");
                continue;
            }
            if (open(input.extents)) return error("Error Code 4: Internal Error (shape input " + input.name + " has a dynamic shape)");
            if (!has_values)
                return error("Error Code 4: Internal Error (optimization profile is missing values for shape input " +
                             input.name + ")");
            for (const Extents& given : values->second)
                if (given.size() * size_of_type(input.type) != bytes_of(input.type, input.extents))
                    return error("Error Code 4: Internal Error (shape input " + input.name + " holds another number of values)");
        }
        if (std::string reason = by_values.empty() ? "" : misfit(network, config.profile); !reason.empty())
            return error("Error Code 4: Internal Error (kOPT values for profile 0 violate shape constraints: " + reason + ")");
        if (order("tell-options")) say(ILogger::Severity::kWARNING, "options: " + config.told());
        if (const std::string* bad = order("build-warns")) say(ILogger::Severity::kWARNING, *bad);
        const char* phase = "building (stand-in)";
        auto steps = static_cast<int32_t>(network.model.nodes.size());
        if (config.monitor) config.monitor->phaseStart(phase, nullptr, steps);
        for (int32_t step = 0; step < steps; step++) {
            rest_for("slow-build");
            if (config.monitor && !config.monitor->stepComplete(phase, step)) {
                config.monitor->phaseFinish(phase);
                return error("the build was cancelled by the progress monitor");
            }
        }
        if (config.monitor) config.monitor->phaseFinish(phase);
        Plan plan;
        plan.model = network.bytes;
        plan.profile = config.profile.shapes;
        plan.values = config.profile.values;
        plan.detailed = config.verbosity == ProfilingVerbosity::kDETAILED;
        plan.capabilities = config.capabilities;
        if (!RTX && !config.for_others) plan.capabilities = {gpu_capability()};
        if (RTX) say(ILogger::Severity::kVERBOSE, listing(layers_of(network.model)));
        return new HostMemory(write_plan(plan));
    }
};

// ---------------------------------------------------------------------------------------------------------- runtime

struct Tensor {
    std::string name;
    int type;
    bool input, host;
    Extents extents; // -1 for an open one
    std::array<Extents, 3> profile, values;
    bool by_values = false; // an output whose shape depends on values
};

// What an engine is; contexts hold it as well.
struct Loaded {
    Model model;
    std::unique_ptr<Session> session;
    std::vector<Tensor> tensors;
    std::vector<Layer> layers;
    bool detailed = false;
    bool engine_lives = true;
    // Shapes of the outputs by the inputs' shapes, and by the values of those in host memory.
    mutable std::mutex lock;
    mutable std::map<std::string, std::map<std::string, Extents>> known_shapes;

    const Tensor& tensor(const char* name, const char* call) const {
        for (const Tensor& tensor : tensors)
            if (tensor.name == name) return tensor;
        refuse(std::string(call) + " was asked for `" + name + "`, which the engine has not");
    }
};

// One computation: staging memory beside the tensors, and the values of inputs that lie in host memory.
struct Job {
    std::shared_ptr<Loaded> loaded;
    std::vector<Array> inputs;
    std::vector<std::string> outputs;
    std::vector<Extents> output_extents;
    std::vector<void*> staged_inputs, staged_outputs; // null for host memory
    std::vector<void*> host_outputs;
    std::atomic<long> ordered{0}, ran{0};
    std::atomic<double> milliseconds{0};

    void run() {
        rest_for("slow");
        auto started = std::chrono::steady_clock::now();
        for (size_t i = 0; i < inputs.size(); i++)
            if (staged_inputs[i]) inputs[i].bytes.assign(static_cast<char*>(staged_inputs[i]), inputs[i].bytes.size());
        std::string reason;
        std::vector<Array> made = loaded->session->run(inputs, outputs, &reason);
        if (!reason.empty()) refuse("ONNX Runtime could not run the model: " + reason);
        for (size_t i = 0; i < made.size(); i++) {
            if (made[i].extents != output_extents[i])
                refuse("the shape of output `" + made[i].name + "` depends on values in device memory, which the stand-in does not know");
            void* to = staged_outputs[i] ? staged_outputs[i] : host_outputs[i];
            std::memcpy(to, made[i].bytes.data(), made[i].bytes.size());
        }
        milliseconds = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - started).count();
        ++ran;
    }
};

struct Cache : std::enable_shared_from_this<Cache> {
    std::string kernels = "kernels (stand-in)";
};

struct Context : apiv::RefusedVExecutionContext {
    std::shared_ptr<Loaded> loaded;
    std::shared_ptr<Cache> cache;
    std::map<std::string, Extents> shapes;
    std::map<std::string, void*> addresses;
    std::vector<std::unique_ptr<Job>> jobs;
    std::vector<void*> staging;
    IProfiler* profiler = nullptr;
    bool emits = true;
    std::set<std::string> warm; // shapes that ran outside of a recording

    Context(std::shared_ptr<Loaded> loaded, std::shared_ptr<Cache> cache)
        : loaded(std::move(loaded)), cache(std::move(cache)) {
        for (const Tensor& tensor : this->loaded->tensors)
            if (tensor.input && !open(tensor.extents)) shapes[tensor.name] = tensor.extents;
    }

    ~Context() noexcept override {
        for (auto& job : jobs)
            if (job->ran < job->ordered && !gpu_is_lost()) refuse("an execution context was destroyed before its work was waited for");
        if (!loaded->engine_lives) refuse("an execution context was destroyed after its engine");
        if (!staging.empty()) needs_context("~IExecutionContext");
        for (void* memory : staging) driver()->host_free(memory);
    }

    void live(const char* call) const {
        if (!loaded->engine_lives) refuse(std::string(call) + " on a context whose engine is gone");
    }

    void setProfiler(IProfiler* value) noexcept override { profiler = value; }
    void setEnqueueEmitsProfile(bool value) noexcept override { emits = value; }

    bool setInputShape(char const* name, Dims const& dims) noexcept override {
        live("setInputShape");
        const Tensor& tensor = loaded->tensor(name, "setInputShape");
        if (!tensor.input) refuse(std::string("setInputShape of `") + name + "`, which is an output");
        Extents extents = extents_of(dims);
        auto refused = [&](const std::string& why) {
            shapes.erase(name);
            return error("IExecutionContext::setInputShape: Error Code 3: API Usage Error (" + why + ")");
        };
        if (extents.size() != tensor.extents.size()) return refused("the rank of `" + tensor.name + "` is another");
        for (size_t i = 0; i < extents.size(); i++) {
            if (tensor.extents[i] >= 0 && tensor.extents[i] != extents[i])
                return refused("Static dimension mismatch while setting input shape for " + tensor.name);
            if (tensor.extents[i] < 0 && (extents[i] < tensor.profile[0][i] || extents[i] > tensor.profile[2][i]))
                return refused("Set dimension " + text(extents[i]) + " of tensor " + tensor.name +
                               " does not satisfy any optimization profiles. Valid range is [" +
                               text(tensor.profile[0][i]) + ", " + text(tensor.profile[2][i]) + "]");
        }
        shapes[name] = extents;
        return true;
    }

    Dims getTensorShape(char const* name) const noexcept override {
        live("getTensorShape");
        const Tensor& tensor = loaded->tensor(name, "getTensorShape");
        if (tensor.input) {
            auto known = shapes.find(name);
            return dims_of(known == shapes.end() ? tensor.extents : known->second);
        }
        std::vector<Array> inputs;
        if (tensor.by_values || !given(&inputs)) return dims_of(tensor.extents);
        std::map<std::string, Extents> found;
        return inferred(inputs, &found) ? dims_of(found.at(name)) : dims_of_none();
    }

    // Ends the test where a shape input holds what its profile does not allow.
    static void within(const Tensor& tensor, const std::string& bytes) {
        for (size_t i = 0; i < tensor.values[0].size(); i++) {
            int64_t value = 0;
            if (tensor.type == 7) std::memcpy(&value, bytes.data() + 8 * i, 8);
            else value = reinterpret_cast<const int32_t*>(bytes.data())[i];
            if (value < tensor.values[0][i] || value > tensor.values[2][i])
                refuse("shape input `" + tensor.name + "` holds " + text(value) + ", and the profile allows " +
                       text(tensor.values[0][i]) + " to " + text(tensor.values[2][i]));
        }
    }

    // The inputs with their shapes, and values where these lie in host memory; zeros elsewhere.
    bool given(std::vector<Array>* inputs) const {
        for (const Tensor& tensor : loaded->tensors) {
            if (!tensor.input) continue;
            auto shape = shapes.find(tensor.name);
            if (shape == shapes.end()) return false;
            std::string bytes(bytes_of(tensor.type, shape->second), '\0');
            if (tensor.host) {
                auto address = addresses.find(tensor.name);
                if (address == addresses.end()) return false;
                bytes.assign(static_cast<const char*>(address->second), bytes.size());
                within(tensor, bytes);
            }
            inputs->push_back({tensor.name, tensor.type, shape->second, std::move(bytes)});
        }
        return true;
    }

    // The outputs' shapes for these inputs, found by a run; false where the inputs do not go together.
    bool inferred(const std::vector<Array>& inputs, std::map<std::string, Extents>* found) const {
        std::lock_guard<std::mutex> guard(loaded->lock);
        std::string key;
        for (const Array& input : inputs) {
            for (int64_t extent : input.extents) key += text(extent) + "x";
            if (loaded->tensor(input.name.c_str(), "").host) key += input.bytes;
            key += ";";
        }
        auto& shapes = loaded->known_shapes[key];
        if (shapes.empty()) {
            std::vector<std::string> outputs;
            for (const Tensor& tensor : loaded->tensors)
                if (!tensor.input) outputs.push_back(tensor.name);
            std::string reason;
            for (const Array& output : loaded->session->run(inputs, outputs, &reason)) shapes[output.name] = output.extents;
            if (!reason.empty()) return error("Error Code 7: Internal Error (" + reason + ")");
        }
        *found = shapes;
        return true;
    }

    bool setTensorAddress(char const* name, void* data) noexcept override {
        live("setTensorAddress");
        loaded->tensor(name, "setTensorAddress");
        if (order("refuse-addresses")) return error("setTensorAddress: refused as ordered");
        addresses[name] = data;
        return true;
    }

    // What the driver itself refuses is an error of TensorRT, and no rule that the caller broke.
    static bool fine(int status) {
        if (status != 0) error("enqueueV3: CUDA error " + text(status));
        return status == 0;
    }

    bool stage(size_t bytes, std::vector<void*>* staged) {
        void* memory = nullptr;
        if (!fine(driver()->host_alloc(&memory, bytes ? bytes : 1, 0))) return false;
        staging.push_back(memory);
        staged->push_back(memory);
        return true;
    }

    // Ends the test unless the tensor lies on the right side and in enough memory; false where the driver fails.
    bool check(const Tensor& tensor, void* data, size_t bytes) const {
        auto address = reinterpret_cast<uint64_t>(data);
        std::string which = "tensor `" + tensor.name + "` at " + hex(address);
        unsigned kind = 0;
        int status = driver()->pointer_attribute(&kind, 2, address);
        if (status != 1 && !fine(status)) return false; // 1: the driver knows no such memory
        bool device = status == 0 && kind == 2;
        if (tensor.host && device) refuse(which + " lies in device memory, and TensorRT reads it in host memory");
        if (tensor.host) return true;
        if (!device) refuse(which + " lies in no device memory");
        uint64_t begin = 0;
        size_t size = 0;
        if (!fine(driver()->address_range(&begin, &size, address))) return false;
        if (address + bytes > begin + size)
            refuse(which + " needs " + text(static_cast<long long>(bytes)) + " bytes, and the memory there has " +
                   text(static_cast<long long>(begin + size - address)));
        return true;
    }

    Job* prepared(const std::vector<Array>& inputs, bool recording, const std::string& key) {
        auto made = std::make_unique<Job>();
        std::map<std::string, Extents> found;
        if (!inferred(inputs, &found)) return nullptr;
        size_t next = 0;
        made->loaded = loaded;
        for (const Tensor& tensor : loaded->tensors) {
            auto address = addresses.find(tensor.name);
            if (address == addresses.end()) refuse("tensor `" + tensor.name + "` has no address");
            const Extents& extents = tensor.input ? inputs[next].extents : found.at(tensor.name);
            size_t bytes = bytes_of(tensor.type, extents);
            if (!check(tensor, address->second, bytes)) return nullptr;
            if (tensor.input) {
                made->inputs.push_back(inputs[next++]);
            } else {
                made->outputs.push_back(tensor.name);
                made->output_extents.push_back(extents);
                made->host_outputs.push_back(tensor.host ? address->second : nullptr);
            }
        }
        // The same work as the last one needs no other memory.
        if (!jobs.empty()) {
            Job& last = *jobs.back();
            bool same = last.output_extents == made->output_extents && last.host_outputs == made->host_outputs;
            for (size_t i = 0; same && i < made->inputs.size(); i++)
                same = last.inputs[i].extents == made->inputs[i].extents &&
                       (last.staged_inputs[i] || last.inputs[i].bytes == made->inputs[i].bytes);
            if (same) return &last;
        }
        if (recording) {
            error("enqueueV3 [" + key + "]: memory is allocated at the first call of a shape, which cannot be recorded");
            return nullptr;
        }
        size_t input = 0, output = 0;
        for (const Tensor& tensor : loaded->tensors) {
            size_t bytes = tensor.input ? made->inputs[input++].bytes.size() : bytes_of(tensor.type, made->output_extents[output++]);
            auto& staged = tensor.input ? made->staged_inputs : made->staged_outputs;
            if (tensor.host) staged.push_back(nullptr);
            else if (!stage(bytes, &staged)) return nullptr;
        }
        jobs.push_back(std::move(made));
        return jobs.back().get();
    }

    bool enqueueV3(cudaStream_t stream_handle) noexcept override {
        live("enqueueV3");
        needs_context("enqueueV3");
        static std::atomic<long long> calls{0};
        if (++calls == number_of("enqueue-fails", -1))
            return error("IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (an illegal memory access was encountered)");
        void* stream = stream_handle;
        int recording = 0;
        if (!fine(driver()->capturing(stream, &recording))) return false;
        std::vector<Array> inputs;
        if (!given(&inputs)) refuse("enqueueV3 before every input had a shape, and a value where it lies in host memory");
        Job* job = prepared(inputs, recording != 0, "stand-in");
        if (!job) return false;
        size_t input = 0, output = 0;
        for (const Tensor& tensor : loaded->tensors) {
            if (!tensor.input) continue;
            size_t index = input++;
            size_t bytes = job->inputs[index].bytes.size();
            auto from = reinterpret_cast<uint64_t>(addresses[tensor.name]);
            if (!tensor.host && bytes && !fine(driver()->to_host(job->staged_inputs[index], from, bytes, stream))) return false;
        }
        if (!fine(driver()->host_function(stream, [](void* job) { static_cast<Job*>(job)->run(); }, job))) return false;
        if (!recording) ++job->ordered;
        for (const Tensor& tensor : loaded->tensors) {
            if (tensor.input) continue;
            size_t index = output++;
            size_t bytes = bytes_of(tensor.type, job->output_extents[index]);
            auto to = reinterpret_cast<uint64_t>(addresses[tensor.name]);
            if (!tensor.host && bytes && !fine(driver()->to_device(to, job->staged_outputs[index], bytes, stream))) return false;
        }
        if (profiler && emits && !recording) {
            if (!fine(driver()->synchronize(stream))) return false;
            // Made up, in equal parts: there are no layers that could be timed.
            for (const Layer& layer : loaded->layers)
                profiler->reportLayerTime(layer.name.c_str(),
                                          static_cast<float>(job->milliseconds / static_cast<double>(loaded->layers.size())));
        }
        if (cache && cache->kernels.find("compiled") == std::string::npos) cache->kernels += "; compiled";
        return true;
    }
};
using ExecutionContext = Made<IExecutionContext, Context>;

struct Inspector : apiv::RefusedVEngineInspector {
    std::string json;
    explicit Inspector(std::string json) : json(std::move(json)) {}
    char const* getEngineInformation(LayerInformationFormat format) const noexcept override {
        if (format != LayerInformationFormat::kJSON) refuse("the inspector was asked for something else than JSON");
        if (order("no-inspection")) return nullptr;
        return json.c_str();
    }
};
using EngineInspector = Made<IEngineInspector, Inspector>;

#if NV_TENSORRT_MAJOR == 1
struct RuntimeCache : apiv::RefusedVRuntimeCache {
    std::shared_ptr<Cache> cache = std::make_shared<Cache>();
    IHostMemory* serialize() const noexcept override {
        if (order("null-cache")) return nullptr;
        return new HostMemory(cache->kernels);
    }
    bool deserialize(void const* blob, size_t size) noexcept override {
        std::string bytes(static_cast<const char*>(blob), size);
        if (bytes.rfind("kernels (stand-in)", 0) != 0) return error("the runtime cache is none of the stand-in's");
        cache->kernels = bytes;
        return true;
    }
};
using RuntimeCacheMade = Made<IRuntimeCache, RuntimeCache>;
#endif

struct RunConfig : apiv::RefusedVRuntimeConfig {
    std::shared_ptr<Cache> cache;
#if NV_TENSORRT_MAJOR == 1
    IRuntimeCache* createRuntimeCache() const noexcept override { return new RuntimeCacheMade; }
    bool setRuntimeCache(IRuntimeCache const& given) noexcept override {
        cache = static_cast<const RuntimeCacheMade&>(given).implementation.cache;
        return true;
    }
#endif
};
using RuntimeConfigMade = Made<IRuntimeConfig, RunConfig>;

struct Engine : apiv::RefusedVCudaEngine {
    std::shared_ptr<Loaded> loaded;
    std::shared_ptr<bool> runtime_lives;

    Engine(std::shared_ptr<Loaded> loaded, std::shared_ptr<bool> runtime_lives)
        : loaded(std::move(loaded)), runtime_lives(std::move(runtime_lives)) {}
    ~Engine() noexcept override {
        live("~ICudaEngine");
        loaded->engine_lives = false;
    }

    void live(const char* call) const {
        if (!*runtime_lives) refuse(std::string(call) + " on an engine whose runtime is gone");
    }
    const Tensor& tensor(const char* name, const char* call) const {
        live(call);
        return loaded->tensor(name, call);
    }

    char const* getName() const noexcept override { return "stand-in"; }
    int32_t getNbIOTensors() const noexcept override { return static_cast<int32_t>(loaded->tensors.size()); }
    char const* getIOTensorName(int32_t index) const noexcept override {
        return loaded->tensors.at(static_cast<size_t>(index)).name.c_str();
    }
    Dims getTensorShape(char const* name) const noexcept override { return dims_of(tensor(name, __func__).extents); }
    DataType getTensorDataType(char const* name) const noexcept override {
        const std::string* narrow = order("four-bits");
        const Tensor& asked = tensor(name, __func__);
        return narrow && *narrow == asked.name ? DataType::kINT4 : type_of(asked.type);
    }
    TensorIOMode getTensorIOMode(char const* name) const noexcept override {
        return tensor(name, __func__).input ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
    }
    TensorLocation getTensorLocation(char const* name) const noexcept override {
        return tensor(name, __func__).host ? TensorLocation::kHOST : TensorLocation::kDEVICE;
    }
    bool isShapeInferenceIO(char const* name) const noexcept override { return tensor(name, __func__).host; }
    Dims getProfileShape(char const* name, int32_t profile, OptProfileSelector select) const noexcept override {
        const Tensor& asked = tensor(name, __func__);
        if (profile != 0 || !asked.input) return dims_of_none();
        return dims_of(open(asked.extents) ? asked.profile[static_cast<size_t>(select)] : asked.extents);
    }
    int64_t const* getProfileTensorValuesV2(char const* name, int32_t profile, OptProfileSelector select) const noexcept override {
        const Tensor& asked = tensor(name, __func__);
        if (profile != 0) refuse("getProfileTensorValuesV2 of a profile that the engine has not");
        return asked.host ? asked.values[static_cast<size_t>(select)].data() : nullptr;
    }
    TensorFormat getTensorFormat(char const* name) const noexcept override {
        const std::string* packed = order("packed");
        return packed && *packed == tensor(name, __func__).name ? TensorFormat::kCHW32 : TensorFormat::kLINEAR;
    }
    char const* getTensorFormatDesc(char const* name) const noexcept override {
        return getTensorFormat(name) == TensorFormat::kLINEAR ? "Row major linear FP32 format (kLINEAR)"
                                                              : "Thirty-two wide channel vectorized row major format (kCHW32)";
    }
    IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy) noexcept override {
        live(__func__);
        if (order("null-context")) return error("createExecutionContext: Error Code 2: OutOfMemory (Requested size was 1)");
        return new ExecutionContext(loaded, nullptr);
    }
    IExecutionContext* createExecutionContextWithRuntimeConfig(IRuntimeConfig* config) noexcept override {
        live(__func__);
        return new ExecutionContext(loaded, static_cast<RuntimeConfigMade*>(config)->implementation.cache);
    }
    IRuntimeConfig* createRuntimeConfig() noexcept override { return new RuntimeConfigMade; }
    IEngineInspector* createEngineInspector() const noexcept override {
        live(__func__);
        if (order("null-inspector")) return nullptr;
        bool detailed = loaded->detailed && !order("names-only");
        return new EngineInspector(inspected(loaded->layers, loaded->model, detailed));
    }
};
using CudaEngine = Made<ICudaEngine, Engine>;

bool fits(const std::vector<int>& capabilities) {
    static const std::set<int> OF_RTX = {75, 80, 86, 89, 120, 121};
    if (order("refuse-gpu") || (RTX && !OF_RTX.count(gpu_capability()))) return false;
    for (int one : capabilities)
        if (one == gpu_capability()) return true;
    return capabilities.empty();
}

// The model with a fault in this node, if it has the node: of the first kind that the type of its tensor takes.
std::string faulty(const std::string& model, const std::string& node) {
    std::string reason;
    for (Fault fault : {Fault::DOUBLED, Fault::NEGATED, Fault::DOUBLED_BF16, Fault::DOUBLED_FP8}) {
        std::string faulty = with_fault(model, node, fault);
        if (faulty.empty()) return model;
        if (session_of(faulty, &reason)) return faulty;
    }
    if (session_of(model, &reason)) refuse("no fault can be planted in what `" + node + "` gives");
    return model;
}

struct Runtime : apiv::RefusedVRuntime {
    std::shared_ptr<bool> lives = std::make_shared<bool>(true);

    ~Runtime() noexcept override { *lives = false; }

    ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept override {
        needs_context("deserializeCudaEngine");
        rest_for("slow-load");
        Plan plan;
        if (!read_plan(std::string(static_cast<const char*>(blob), size), &plan))
            return error("IRuntime::deserializeCudaEngine: Error Code 1: Serialization (the plan is none of the stand-in's)");
        if (!fits(plan.capabilities))
            return error("IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file is generated on an "
                         "incompatible device, expecting compute " + text(gpu_capability()) + ")");
        if (order("null-plan")) return nullptr;
        std::string bytes = plan.model;
        auto loaded = std::make_shared<Loaded>();
        read_model(plan.model, &loaded->model);
        for (const char* key : {"fault", "fused-fault"}) {
            const std::string* node = order(key);
            if (!node || (std::string(key) == "fused-fault" && loaded->model.gives(*node))) continue;
            bytes = faulty(bytes, *node);
        }
        std::string reason;
        loaded->session = session_of(bytes, &reason);
        if (!loaded->session) return error("the stand-in computes on the CPU, where this model does not run: " + reason);
        loaded->detailed = plan.detailed;
        loaded->layers = layers_of(loaded->model);
        std::set<std::string> on_host = shape_inputs(loaded->model);
        for (const Value& input : loaded->model.inputs)
            loaded->tensors.push_back({input.name, input.type, true, on_host.count(input.name) != 0, input.extents,
                                       plan.profile[input.name], plan.values[input.name]});
        for (size_t i = 0; i < loaded->model.outputs.size(); i++) {
            const Value& output = loaded->model.outputs[i];
            int type = 0;
            Extents extents = loaded->session->output_extents(i, &type);
            Tensor tensor{output.name, type, false, false, extents, {}, {}};
            for (size_t node : loaded->model.makers_of(output.name)) {
                const std::string& op = loaded->model.nodes[node].op;
                tensor.by_values |= op == "NonZero" || op == "NonMaxSuppression" || op == "Compress" || op == "Unique";
            }
            tensor.by_values &= open(tensor.extents);
            loaded->tensors.push_back(tensor);
        }
        return new CudaEngine(loaded, lives);
    }
#if NV_TENSORRT_MAJOR == 1
    int64_t getEngineHeaderSize() const noexcept override { return PLAN_HEADER; }
    EngineValidity getEngineValidity(void const* blob, int64_t size, uint64_t* diagnostics) const noexcept override {
        Plan plan;
        bool whole = read_plan(std::string(static_cast<const char*>(blob), static_cast<size_t>(size)), &plan);
        *diagnostics = static_cast<uint64_t>(number_of("invalid", 0));
        if (!whole) *diagnostics |= static_cast<uint64_t>(EngineInvalidityDiagnostics::kMALFORMED_ENGINE);
        if (!fits(plan.capabilities)) *diagnostics |= static_cast<uint64_t>(EngineInvalidityDiagnostics::kUNSUPPORTED_CC);
        return *diagnostics ? EngineValidity::kINVALID : EngineValidity::kVALID;
    }
#endif
};

// As the libraries do it: RTX notices a missing driver when it deserializes, TensorRT 11 at once.
bool begins(void* logger, const char* what) {
    the_logger = static_cast<ILogger*>(logger);
    say(ILogger::Severity::kWARNING, "stand-in for TensorRT: nothing that it gives is a result or a time of TensorRT");
    if (order(what)) return false;
    if (!RTX && !driver()) return error("CUDA initialization failure with error: 35. Please check your CUDA installation");
    return true;
}

} // namespace

EXPORTED bool stand_in_take_model(INetworkDefinition* network_made, const char* bytes, size_t size) {
    Network& network = static_cast<NetworkDefinition*>(network_made)->implementation;
    network.bytes.assign(bytes, size);
    if (!read_model(network.bytes, &network.model)) return false;
    std::set<std::string> by_values = shape_inputs(network.model);
    for (const Value& input : network.model.inputs) network.inputs.emplace_back(input, by_values.count(input.name) != 0);
    return true;
}

// By this name calib knows a stand-in, and says so in the library's version and in the backend's name.
EXPORTED bool stand_in_for_tensorrt() noexcept { return true; }

EXPORTED int32_t getInferLibVersion() noexcept { return static_cast<int32_t>(number_of("version", NV_TENSORRT_VERSION)); }

EXPORTED void* createInferBuilder_INTERNAL(void* logger, int32_t) noexcept {
    return begins(logger, "null-builder") ? static_cast<IBuilder*>(new Made<IBuilder, Builder>) : nullptr;
}

EXPORTED void* createInferRuntime_INTERNAL(void* logger, int32_t) noexcept {
    return begins(logger, "null-runtime") ? static_cast<IRuntime*>(new Made<IRuntime, Runtime>) : nullptr;
}
