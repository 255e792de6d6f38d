// The stand-in's plan: a header in the form of TensorRT's, so that calib takes it for one, then an ONNX model and how it
// was to be built.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace stand_in {

constexpr size_t PLAN_HEADER = 64;
constexpr char PLAN_MARK[] = "stand-in, no plan of TensorRT";

using Extents = std::vector<int64_t>;
using Triples = std::map<std::string, std::array<Extents, 3>>;

struct Plan {
    std::vector<int> capabilities; // 89 for 8.9; empty for any
    bool detailed = false;
    Triples profile; // smallest, likely and largest shape
    Triples values;  // the same of what shape inputs hold
    std::string model;
};

std::string write_plan(const Plan& plan);

// False where the bytes are none of the stand-in's.
bool read_plan(const std::string& bytes, Plan* plan);

} // namespace stand_in
