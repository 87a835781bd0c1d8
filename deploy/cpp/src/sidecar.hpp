#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "model_info.hpp"

namespace detector {

/// A TensorRT engine with what its sidecar, `<engine>.json`, says.
struct Engine {
    ModelInfo info;
    std::string plan;             // the content of the engine file
    std::string format;           // tensorrt or tensorrt-rtx
    std::string library_version;  // only the same version runs it
    std::string gpu_name;         // TensorRT: the one kind of GPU; TensorRT-RTX: empty
    std::string capability;       // of that GPU; TensorRT-RTX: the smallest that works
    std::vector<std::string> capabilities;  // TensorRT-RTX: only these; empty: every one from that on
    std::string input;                      // names of the tensors
    std::string output;
    std::string rebuild;  // the command that builds it again
};

/// Reads an engine and its sidecar; the engine must be the one that the sidecar describes.
/// Throws InputError.
Engine read_engine(const std::filesystem::path& path);

/// Throws InputError unless the engine is for this library and GPU.
void require_match(const Engine& engine, const std::string& format, const std::string& version,
                   const std::string& gpu_name, int major, int minor);

}  // namespace detector
