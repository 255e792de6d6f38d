// The layers that an engine of the stand-in is said to have, in the words of the two TensorRTs.
#pragma once

#include <string>
#include <vector>

#include "onnx.h"

namespace stand_in {

struct Layer {
    std::string name, type, origin;
    std::vector<std::string> nodes; // of the ONNX model
    std::vector<Value> inputs, outputs;
};

std::vector<Layer> layers_of(const Model& model);

// As TensorRT-RTX's builder logs them.
std::string listing(const std::vector<Layer>& layers);

// As the engine inspector gives them in JSON; only their names where the engine was built without details.
std::string inspected(const std::vector<Layer>& layers, const Model& model, bool detailed);

} // namespace stand_in
