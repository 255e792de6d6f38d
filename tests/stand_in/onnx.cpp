#include "onnx.h"

#include <algorithm>
#include <fstream>
#include <string_view>

namespace stand_in {
namespace {

// A field of a protobuf message: its number, its value or content, and all its bytes.
struct Field {
    uint64_t number, value;
    std::string_view content, whole;
};

bool varint(std::string_view& rest, uint64_t* value) {
    *value = 0;
    for (int shift = 0; shift < 64 && !rest.empty(); shift += 7) {
        auto byte = static_cast<unsigned char>(rest.front());
        rest.remove_prefix(1);
        *value |= static_cast<uint64_t>(byte & 127) << shift;
        if (byte < 128) return true;
    }
    return false;
}

bool fields(std::string_view message, std::vector<Field>* found) {
    while (!message.empty()) {
        std::string_view begin = message;
        Field field{};
        uint64_t tag, length = 0;
        if (!varint(message, &tag)) return false;
        field.number = tag >> 3;
        switch (tag & 7) {
        case 0:
            if (!varint(message, &field.value)) return false;
            break;
        case 1: length = 8; break;
        case 5: length = 4; break;
        case 2:
            if (!varint(message, &length)) return false;
            break;
        default: return false;
        }
        if (length > message.size()) return false;
        field.content = message.substr(0, length);
        message.remove_prefix(length);
        field.whole = begin.substr(0, begin.size() - message.size());
        found->push_back(field);
    }
    return true;
}

std::vector<Field> fields_of(std::string_view message) {
    std::vector<Field> found;
    if (!fields(message, &found)) found.clear();
    return found;
}

Node node_of(std::string_view message) {
    Node node;
    for (const Field& field : fields_of(message)) {
        std::string content(field.content);
        if (field.number == 1) node.inputs.push_back(content);
        if (field.number == 2) node.outputs.push_back(content);
        if (field.number == 3) node.name = content;
        if (field.number == 4) node.op = content;
        if (field.number != 5) continue; // an attribute
        std::string_view name;
        int value = 0;
        for (const Field& part : fields_of(field.content)) {
            if (part.number == 1) name = part.content;
            if (part.number == 3) value = static_cast<int>(part.value);
        }
        if (name == "to") node.to = value;
    }
    return node;
}

Value value_of(std::string_view message) {
    Value value;
    for (const Field& field : fields_of(message)) {
        if (field.number == 1) value.name = field.content;
        if (field.number != 2) continue;
        for (const Field& kind : fields_of(field.content)) {
            if (kind.number != 1) continue; // a tensor
            for (const Field& part : fields_of(kind.content)) {
                if (part.number == 1) value.type = static_cast<int>(part.value);
                if (part.number != 2) continue;
                for (const Field& extent : fields_of(part.content)) {
                    int64_t known = -1;
                    for (const Field& number : fields_of(extent.content))
                        if (number.number == 1) known = static_cast<int64_t>(number.value);
                    value.extents.push_back(known);
                }
            }
        }
    }
    return value;
}

std::string_view graph_of(std::string_view model) {
    for (const Field& field : fields_of(model))
        if (field.number == 7) return field.content;
    return {};
}

void append_varint(std::string* to, uint64_t value) {
    for (; value > 127; value >>= 7) to->push_back(static_cast<char>(value | 128));
    to->push_back(static_cast<char>(value));
}

void append(std::string* to, uint64_t number, std::string_view content) {
    append_varint(to, number << 3 | 2);
    append_varint(to, content.size());
    to->append(content);
}

// The model with another graph.
std::string with_graph(std::string_view model, std::string_view graph) {
    std::string made;
    for (const Field& field : fields_of(model)) {
        if (field.number == 7) append(&made, 7, graph);
        else made.append(field.whole);
    }
    return made;
}

// ONNX's numbers.
constexpr uint64_t FP32 = 1, BF16 = 16, FP8 = 17;

// A node that casts.
std::string cast(const std::string& from, const std::string& into, uint64_t type) {
    std::string node, to;
    append(&to, 1, "to");
    append_varint(&to, 3 << 3);
    append_varint(&to, type);
    append_varint(&to, 20 << 3);
    append_varint(&to, 2); // an integer
    append(&node, 1, from);
    append(&node, 2, into);
    append(&node, 3, into + "__cast");
    append(&node, 4, "Cast");
    append(&node, 5, to);
    return node;
}

} // namespace

bool read_model(const std::string& bytes, Model* model) {
    std::vector<Field> outermost;
    if (!fields(bytes, &outermost) || graph_of(bytes).empty()) return false;
    std::vector<Value> inputs;
    for (const Field& field : fields_of(graph_of(bytes))) {
        if (field.number == 1) model->nodes.push_back(node_of(field.content));
        if (field.number == 5) {
            std::string name;
            int type = 0;
            for (const Field& part : fields_of(field.content)) {
                if (part.number == 2) type = static_cast<int>(part.value);
                if (part.number == 8) name = part.content;
            }
            model->weights.insert(name);
            model->types[name] = type;
        }
        if (field.number == 11 || field.number == 12 || field.number == 13) {
            Value value = value_of(field.content);
            model->types[value.name] = value.type;
            if (field.number == 11) inputs.push_back(value);
            if (field.number == 12) model->outputs.push_back(value);
        }
    }
    for (Value& input : inputs)
        if (!model->weights.count(input.name)) model->inputs.push_back(input);
    return true;
}

std::set<size_t> Model::makers_of(const std::string& tensor) const {
    std::set<std::string> wanted = {tensor};
    std::set<size_t> makers;
    for (size_t i = nodes.size(); i-- > 0;)
        for (const std::string& output : nodes[i].outputs)
            if (wanted.count(output)) {
                makers.insert(i);
                wanted.insert(nodes[i].inputs.begin(), nodes[i].inputs.end());
            }
    return makers;
}

bool Model::gives(const std::string& name) const {
    for (const Node& node : nodes)
        for (const Value& output : outputs)
            if (node.name == name && std::count(node.outputs.begin(), node.outputs.end(), output.name)) return true;
    return false;
}

std::string with_fault(const std::string& bytes, const std::string& name, Fault fault) {
    std::string graph;
    bool planted = false;
    for (const Field& field : fields_of(graph_of(bytes))) {
        Node node = field.number == 1 ? node_of(field.content) : Node{};
        if (planted || node.name != name || node.outputs.empty()) {
            graph.append(field.whole);
            continue;
        }
        std::string right = node.outputs[0] + "__before_the_fault", faulty, twice;
        bool first = true;
        for (const Field& part : fields_of(field.content)) {
            if (part.number == 2 && first) append(&faulty, 2, right);
            else faulty.append(part.whole);
            first &= part.number != 2;
        }
        append(&graph, 1, faulty);
        std::string wrong = node.outputs[0];
        if (fault == Fault::DOUBLED_BF16 || fault == Fault::DOUBLED_FP8) {
            std::string wide = right + "__wide";
            append(&graph, 1, cast(right, wide, FP32));
            right = wide;
            wrong += "__fault_wide";
        }
        append(&twice, 1, right);
        if (fault != Fault::NEGATED) append(&twice, 1, right);
        append(&twice, 2, wrong);
        append(&twice, 3, name + "__fault");
        append(&twice, 4, fault == Fault::NEGATED ? "Not" : "Add");
        append(&graph, 1, twice);
        if (wrong != node.outputs[0]) append(&graph, 1, cast(wrong, node.outputs[0], fault == Fault::DOUBLED_FP8 ? FP8 : BF16));
        planted = true;
    }
    if (!planted) return "";
    return with_graph(bytes, graph);
}

// The bytes of a weight that lies in another file; false where they are not there.
bool read_external(std::string_view weight, const std::string& folder, std::string* bytes) {
    std::string file;
    size_t offset = 0, length = std::string::npos;
    for (const Field& part : fields_of(weight)) {
        if (part.number != 13) continue;
        std::string key, value;
        for (const Field& word : fields_of(part.content)) (word.number == 1 ? key : value) = word.content;
        if (key == "location") file = value;
        if (key == "offset") offset = std::stoull(value);
        if (key == "length") length = std::stoull(value);
    }
    std::ifstream stream(folder + "/" + file, std::ios::binary | std::ios::ate);
    auto size = static_cast<size_t>(stream ? static_cast<std::streamoff>(stream.tellg()) : 0);
    if (offset > size) return false;
    if (length == std::string::npos) length = size - offset;
    bytes->resize(length);
    stream.seekg(static_cast<std::streamoff>(offset));
    return static_cast<bool>(stream.read(bytes->data(), static_cast<std::streamsize>(length)));
}

std::string with_external_weights(const std::string& bytes, const std::string& folder) {
    std::string graph;
    for (const Field& field : fields_of(graph_of(bytes))) {
        std::string weight, values;
        bool external = false;
        for (const Field& part : field.number == 5 ? fields_of(field.content) : std::vector<Field>{}) {
            external |= part.number == 14 && part.value == 1;
            if (part.number != 13 && part.number != 14) weight.append(part.whole);
        }
        if (!external) {
            graph.append(field.whole);
            continue;
        }
        if (!read_external(field.content, folder, &values)) return "";
        append(&weight, 9, values);
        append(&graph, 5, weight);
    }
    return with_graph(bytes, graph);
}

std::string without_types(const std::string& bytes) {
    std::string graph;
    for (const Field& field : fields_of(graph_of(bytes))) {
        Value value = field.number == 12 ? value_of(field.content) : Value{};
        if (field.number != 12 || !value.extents.empty()) {
            graph.append(field.whole);
            continue;
        }
        std::string bare;
        append(&bare, 1, value.name);
        append(&graph, 12, bare);
    }
    return with_graph(bytes, graph);
}

std::string in_floats(const std::string& bytes) {
    std::string graph;
    for (const Field& field : fields_of(graph_of(bytes))) {
        if (field.number == 13) continue; // types of what lies between: ONNX Runtime finds them
        if (field.number == 5) {
            std::string weight, wide;
            bool narrow = false;
            for (const Field& part : fields_of(field.content)) {
                narrow |= part.number == 2 && part.value == BF16;
                if (part.number == 9)
                    for (size_t i = 0; i + 1 < part.content.size(); i += 2) wide.append("\0\0", 2).append(part.content.substr(i, 2));
                if (part.number != 2 && part.number != 9) weight.append(part.whole);
            }
            if (narrow) {
                append_varint(&weight, 2 << 3);
                append_varint(&weight, FP32);
                append(&weight, 9, wide);
                append(&graph, 5, weight);
                continue;
            }
        }
        Node node = field.number == 1 ? node_of(field.content) : Node{};
        graph.append(field.whole);
        if (node.op != "Cast" || node.to != BF16) continue;
        // What the cast rounds stays rounded, in FP32.
        std::string rounded = node.outputs[0] + "__rounded", narrow;
        for (const Field& part : fields_of(field.content)) {
            if (part.number == 2) append(&narrow, 2, rounded);
            else narrow.append(part.whole);
        }
        graph.resize(graph.size() - field.whole.size());
        append(&graph, 1, narrow);
        append(&graph, 1, cast(rounded, node.outputs[0], FP32));
    }
    return with_graph(bytes, graph);
}

size_t size_of_type(int type) {
    switch (type) {
    case 2: case 3: case 9: case 17: return 1;
    case 10: case 16: return 2;
    case 1: case 6: return 4;
    case 7: return 8;
    default: return 0;
    }
}

} // namespace stand_in
