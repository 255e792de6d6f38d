#include "layers.h"

#include <NvInferVersion.h>

#include "stand_in.h"

namespace stand_in {
namespace {

const bool RTX = NV_TENSORRT_MAJOR == 1;

bool multiplies(const std::string& op) {
    return op == "Conv" || op == "ConvTranspose" || op == "Gemm" || op == "MatMul";
}

bool is_qdq(const std::string& op) { return op == "QuantizeLinear" || op == "DequantizeLinear"; }

// Since version 11, as in RTX, the type has a field of its own; before, it was part of the format's sentence.
const char* type_name(int type) {
    switch (type) {
    case 1: return "Float";
    case 2: return "UInt8";
    case 3: return "Int8";
    case 6: return "Int32";
    case 7: return "Int64";
    case 9: return "Bool";
    case 10: return "Half";
    case 16: return "BFloat16";
    case 17: return RTX ? "FP8" : "Float8E4M3FN";
    default: return "N/A due to dynamic shapes";
    }
}

std::string layer_type(const std::string& op) {
    if (op == "Conv") return RTX ? "correlation" : "CaskConvolution";
    if (op == "ConvTranspose") return RTX ? "deconv" : "CaskDeconvolutionV2";
    if (multiplies(op)) return RTX ? "gemm" : "CaskGemmMatrixMultiply";
    if (is_qdq(op)) return RTX ? "kgen" : "Reformat";
    return RTX ? "kgen" : "PointWiseV2";
}

std::string quoted(const std::string& words) {
    std::string text = "\"";
    for (char c : words) {
        if (c == '"' || c == '\\') text += '\\';
        text += c;
    }
    return text + "\"";
}

template <class T, class F> std::string joined(const std::vector<T>& all, const char* between, F one) {
    std::string text;
    for (const T& item : all) text += (text.empty() ? "" : between) + one(item);
    return text;
}

std::string extents(const Value& value) {
    return "[" + joined(value.extents, ",", [](int64_t extent) { return text(extent); }) + "]";
}

std::string metadata(const Layer& layer) {
    return joined(layer.nodes, RTX ? "" : "\x1e", [](const std::string& node) { return "[ONNX Layer: " + node + "]"; });
}

} // namespace

std::vector<Layer> layers_of(const Model& model) {
    std::map<std::string, const Node*> makers;
    std::map<std::string, std::vector<const Node*>> readers;
    for (const Node& node : model.nodes) {
        for (const std::string& output : node.outputs) makers[output] = &node;
        for (const std::string& input : node.inputs) readers[input].push_back(&node);
    }
    // Types spread from what the file tells; most operators keep the type of their first input.
    std::map<std::string, int> types = model.types;
    for (const Node& node : model.nodes) {
        int type = 0;
        for (const std::string& input : node.inputs)
            if (type == 0 || is_qdq(node.op)) type = types[input]; // of Q/DQ, the last tells the narrow type
        if (node.op == "Cast") type = node.to;
        if (node.op == "DequantizeLinear" && node.inputs.size() > 1) type = types[node.inputs[1]];
        for (const std::string& output : node.outputs)
            if (types[output] == 0) types[output] = type;
    }
    auto value = [&](const std::string& name) {
        Value value{name, types[name], {}};
        for (const auto* known : {&model.inputs, &model.outputs})
            for (const Value& one : *known)
                if (one.name == name) value.extents = one.extents;
        return value;
    };
    std::vector<Layer> layers;
    for (const Node& node : model.nodes) {
        if (node.op == "Constant" || node.op == "Identity" || node.outputs.empty()) continue;
        if (is_qdq(node.op)) {
            // What stands around a product is computed with it; so is what only changes weights.
            bool into_product = model.weights.count(node.inputs[0]) != 0;
            for (const Node* reader : readers[node.outputs[0]]) {
                into_product |= multiplies(reader->op);
                for (const std::string& output : reader->outputs)
                    for (const Node* next : readers[output]) into_product |= is_qdq(reader->op) && multiplies(next->op);
            }
            const Node* maker = makers.count(node.inputs[0]) ? makers[node.inputs[0]] : nullptr;
            if (into_product && (node.op == "DequantizeLinear" || maker)) continue;
        }
        std::string name = node.name.empty() ? node.outputs[0] : node.name;
        // RTX names kernels that it generates after what they do, which tells Q/DQ where nobody knows the ONNX model.
        if (RTX && is_qdq(node.op))
            name = std::string("__myl_") + (node.op == "QuantizeLinear" ? "MulMinMaxRounCast" : "CastMul") + "_myl0_" +
                   text(static_cast<long long>(layers.size()));
        Layer layer{name, layer_type(node.op), is_qdq(node.op) ? "QDQ" : "", {}, {}, {}};
        layer.nodes.push_back(node.name);
        for (const std::string& input : node.inputs) {
            if (input.empty() || model.weights.count(input)) continue;
            const Node* maker = makers.count(input) ? makers[input] : nullptr;
            if (multiplies(node.op) && maker && maker->op == "DequantizeLinear") {
                layer.nodes.push_back(maker->name);
                if (!model.weights.count(maker->inputs[0])) layer.inputs.push_back(value(maker->inputs[0]));
            } else {
                layer.inputs.push_back(value(input));
            }
        }
        for (const std::string& output : node.outputs) layer.outputs.push_back(value(output));
        layers.push_back(layer);
    }
    return layers;
}

std::string listing(const std::vector<Layer>& layers) {
    auto tensor = [](const Value& value) {
        return "{ Name: " + value.name + ", Dimensions: " + extents(value) +
               ", Strides: [], StrideOrder: [], Datatype: " + type_name(value.type) +
               ", Format: (Linear) Row major linear format }";
    };
    auto tensors = [&](const std::vector<Value>& values) {
        return values.empty() ? std::string("[]") : "[ " + joined(values, ", ", tensor) + "]";
    };
    std::string text = "Layers:\n";
    for (const Layer& layer : layers)
        text += "Name: " + layer.name + ", LayerType: " + layer.type + ", Inputs: " + tensors(layer.inputs) +
                ", Constants: [], Outputs: " + tensors(layer.outputs) +
                ", TacticName: stand_in, StreamId: 0, Metadata: " + metadata(layer) + "\n";
    return text + "\nI/O Tensors:\n";
}

std::string inspected(const std::vector<Layer>& layers, const Model& model, bool detailed) {
    auto tensor = [](const Value& value) {
        return "{\"Name\": " + quoted(value.name) + ", \"Location\": \"Device\", \"Dimensions\": " + extents(value) +
               ", \"Datatype\": " + quoted(type_name(value.type)) + ", \"Format\": \"" +
               (RTX ? "(Linear) Row major linear format" : "Row major linear") + "\"}";
    };
    auto tensors = [&](const std::vector<Value>& values) { return "[" + joined(values, ", ", tensor) + "]"; };
    auto layer = [&](const Layer& layer) {
        if (!detailed) return quoted(layer.name);
        return "{\"Name\": " + quoted(layer.name) + ", \"LayerType\": " + quoted(layer.type) +
               (layer.origin.empty() || RTX ? "" : ", \"Origin\": " + quoted(layer.origin)) +
               ", \"Inputs\": " + tensors(layer.inputs) + ", \"Outputs\": " + tensors(layer.outputs) +
               ", \"TacticName\": \"stand_in\", \"StreamId\": 0, \"Metadata\": " + [&] {
                   std::string text = quoted(metadata(layer)), safe;
                   for (char c : text) safe += c == '\x1e' ? "\\u001e" : std::string(1, c);
                   return safe;
               }() + "}";
    };
    std::vector<Value> ends = model.inputs;
    ends.insert(ends.end(), model.outputs.begin(), model.outputs.end());
    auto end = [](const Value& value) { return RTX ? "{\"Name\": " + quoted(value.name) + "}" : quoted(value.name); };
    return "{\"Layers\": [" + joined(layers, ", ", layer) + "],\n\"" + (RTX ? "I/O Tensors" : "Bindings") + "\": [" +
           joined(ends, ", ", end) + "]}";
}

} // namespace stand_in
