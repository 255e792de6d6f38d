// As much of an ONNX file as the stand-in needs, read from its bytes.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

namespace stand_in {

struct Node {
    std::string name, op;
    std::vector<std::string> inputs, outputs;
    int to = 0; // of a Cast, ONNX's number of the type
};

struct Value {
    std::string name;
    int type = 0;                 // ONNX's number
    std::vector<int64_t> extents; // -1 for an open one
};

struct Model {
    std::vector<Node> nodes;
    std::vector<Value> inputs, outputs; // without weights
    std::map<std::string, int> types;   // of tensors whose type the file tells
    std::set<std::string> weights;

    // Nodes that make the tensor, directly or through others; by index.
    std::set<size_t> makers_of(const std::string& tensor) const;

    // Whether what this node makes is an output.
    bool gives(const std::string& node) const;
};

// False where the bytes are no ONNX model.
bool read_model(const std::string& bytes, Model* model);

// What a fault makes of a tensor: twice as much, the contrary of truth values, or twice as much in FP32 for types that ONNX
// Runtime does not add on the CPU.
enum class Fault { DOUBLED, NEGATED, DOUBLED_BF16, DOUBLED_FP8 };

// The model with such a fault in what `node` gives; empty where there is no such node.
std::string with_fault(const std::string& bytes, const std::string& node, Fault fault);

// The model with weights from other files in `folder` among its own; empty where one is not there.
std::string with_external_weights(const std::string& bytes, const std::string& folder);

// The model without the types of outputs that have no shape: TensorRT takes the type that the tensor has.
std::string without_types(const std::string& bytes);

// The model with its BF16 values in FP32, rounded where it casts to BF16: ONNX Runtime has no BF16 on the CPU.
std::string in_floats(const std::string& bytes);

// Bytes of an element; 0 for types that TensorRT has not.
size_t size_of_type(int type);

} // namespace stand_in
