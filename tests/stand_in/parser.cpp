// A stand-in for TensorRT's ONNX parser: hands the file to the stand-in's network.
#include <filesystem>
#include <fstream>
#include <iterator>

#include "onnx.h"
#include "refusals.h"

// From the other library.
extern "C" bool stand_in_take_model(nvinfer1::INetworkDefinition* network, const char* bytes, size_t size);

namespace {

class Parser : public nvonnxparser::RefusedIParser {
  public:
    Parser(nvinfer1::INetworkDefinition* network, nvinfer1::ILogger* logger) : network(network), logger(logger) {}

    bool parseFromFile(char const* path, int) noexcept override {
        std::ifstream file(path, std::ios::binary);
        std::string bytes{std::istreambuf_iterator<char>(file), {}};
        stand_in::Model model;
        if (bytes.empty() || !read_model(bytes, &model)) return fail("Failed to parse ONNX model from file: ", path);
        bytes = stand_in::with_external_weights(bytes, std::filesystem::absolute(path).parent_path().string());
        if (bytes.empty()) return fail("Failed to open the external weights of ", path);
        for (const stand_in::Value& input : model.inputs)
            if (input.type && !stand_in::size_of_type(input.type))
                return error("ModelImporter.cpp:1: ERROR: In function parse: [8] Assertion failed: convertDtype(onnxDtype.elem_type(), "
                             "&trtDtype) && \"Failed to convert ONNX date type to TensorRT data type.\""), false;
        // One operator stands for all that the real parser lacks.
        for (size_t i = 0; i < model.nodes.size(); i++) {
            const stand_in::Node& node = model.nodes[i];
            bool casts = node.op == "Cast" && !stand_in::size_of_type(node.to);
            if (node.op != "Frobnicate" && !casts) continue;
            error("ModelImporter.cpp:140: While parsing node number " + std::to_string(i) + " [" + node.op + " -> \"" +
                  node.outputs[0] + "\"]:");
            error("ModelImporter.cpp:142: --- Begin node --- Node name: " + node.name);
            error("ModelImporter.cpp:143: --- End node ---");
            error(casts ? "ModelImporter.cpp:151: ERROR: onnxOpImporters.cpp:1 In function importCast: [6] "
                          "convertDtype(onnxType, &newType) && \"Unsupported data type for the Cast operator!\""
                        : "ModelImporter.cpp:151: ERROR: onnxOpCheckers.cpp:998 In function checkFallbackPluginImporter: [6] "
                          "creator && \"Plugin not found\"");
            return false;
        }
        return stand_in_take_model(network, bytes.data(), bytes.size());
    }

    int getNbErrors() const noexcept override { return 0; }

  private:
    void error(const std::string& words) const { logger->log(nvinfer1::ILogger::Severity::kERROR, words.c_str()); }
    bool fail(const std::string& words, const char* path) const { return error(words + path), false; }

    nvinfer1::INetworkDefinition* network;
    nvinfer1::ILogger* logger;
};

} // namespace

EXPORTED void* createNvOnnxParser_INTERNAL(void* network, void* logger, int) noexcept {
    if (stand_in::order("null-parser")) return nullptr;
    return static_cast<nvonnxparser::IParser*>(new Parser(static_cast<nvinfer1::INetworkDefinition*>(network),
                                                          static_cast<nvinfer1::ILogger*>(logger)));
}

EXPORTED int getNvOnnxParserVersion() noexcept { return NV_ONNX_PARSER_VERSION; }
