"""Writes C++ classes that implement every pure virtual method of TensorRT's headers by ending the test with its name.

    refusals.py HEADERS > refusals.h

The stand-in derives from them and overrides what calib calls.
"""

import re
import sys
from pathlib import Path

CLASSES = [
    ("NvInferImpl.h", "nvinfer1::apiv", name)
    for name in (
        "VHostMemory VRuntime VOptimizationProfile VCudaEngine VExecutionContext VEngineInspector VNetworkDefinition "
        "VBuilderConfig VBuilder VTensor VRuntimeConfig VRuntimeCache"
    ).split()
] + [("NvOnnxParser.h", "nvonnxparser", "IParser"), ("NvOnnxParser.h", "nvonnxparser", "IParserError")]

METHOD = re.compile(r"virtual\s+([^;=]*?)\b(\w+)\s*\(([^;]*?)\)\s*(const)?\s*(noexcept)?\s*=\s*0\s*;")


def methods(header: str, name: str):
    text = re.sub(r"//[^\n]*", "", header)
    found = re.search(rf"\bclass {name}\b(?![^{{;]*;)[^{{]*\{{(.*?)\n\}};", text, re.S)
    if found is None:
        return None
    body = re.sub(r"\bTRT_NODISCARD\b|\bTRT_DEPRECATED\b", "", found.group(1))
    return METHOD.findall(" ".join(body.split()))


def main() -> None:
    folder = Path(sys.argv[1])
    print("// Made by refusals.py.\n#pragma once\n#include <NvInfer.h>\n#include <NvOnnxParser.h>\n#include \"stand_in.h\"")
    for file, namespace, name in CLASSES:
        found = methods((folder / file).read_text(), name)
        if found is None:
            continue  # TensorRT 11 has no runtime cache
        if not found:
            sys.exit(f"{file}: class {name} has no methods")
        print(f"namespace {namespace} {{\nclass Refused{name} : public {name} {{\n  public:")
        for result, method, arguments, const, noexcept in found:
            arguments = re.sub(r"=\s*nullptr", "", arguments)
            print(
                f"    {result.strip()} {method}({arguments}) {const} {noexcept} override "
                f"{{ stand_in::refuse(\"{name}::{method} was called, which the stand-in does not know\"); }}"
            )
        print("};\n}")


if __name__ == "__main__":
    main()
