// Runs an ONNX model on the CPU, through the C interface of the ONNX Runtime that calib itself loads.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace stand_in {

struct Array {
    std::string name;
    int type; // ONNX's number
    std::vector<int64_t> extents;
    std::string bytes;
};

class Session {
  public:
    // Null, with a reason, where ONNX Runtime refuses the model.
    static std::unique_ptr<Session> open(const std::string& model, std::string* reason);
    ~Session();

    // Extents of an output, -1 for an open one, and its type as ONNX's number.
    std::vector<int64_t> output_extents(size_t index, int* type) const;

    // The outputs of these names; empty, with a reason, where the run failed.
    std::vector<Array> run(const std::vector<Array>& inputs, const std::vector<std::string>& outputs,
                           std::string* reason) const;

  private:
    Session() = default;
    void* session = nullptr;
};

} // namespace stand_in
