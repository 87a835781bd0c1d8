#include "sidecar.hpp"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <sstream>

#include "input_error.hpp"
#include "sha256.hpp"

namespace detector {

namespace {

using nlohmann::json;
using std::filesystem::path;

std::string read_bytes(const path& file) {
    std::ifstream stream(file, std::ios::binary);
    if (!stream)
        throw InputError(text(file) + ": cannot be read");
    return {std::istreambuf_iterator<char>(stream), {}};
}

json read_json(const path& sidecar, const path& engine) {
    if (!std::filesystem::is_regular_file(sidecar))
        throw InputError(text(engine) + ": its sidecar is missing (there is no " +
                         text(sidecar.filename()) + " beside it); build it by: python -m " +
                         "detector.export --weights <checkpoint> --format tensorrt-rtx");
    try {
        return json::parse(read_bytes(sidecar));
    } catch (const json::exception& error) {
        throw InputError(text(sidecar) + ": not a readable sidecar (" + error.what() + ")");
    }
}

/// The text at `key`, empty where it is null.
std::string optional_text(const json& object, const char* key) {
    const auto& value = object.at(key);
    return value.is_null() ? std::string() : value.get<std::string>();
}

std::string tensor_name(const json& tensors) {
    const auto& tensor = tensors.at(0);
    if (tensor.at("dtype") != "float32")
        throw InputError("its tensors must be float32");
    return tensor.at("name").get<std::string>();
}

Engine parse(const path& file, const json& description) {
    Engine engine;
    engine.info = read_info(file, description);
    engine.info.min_batch = description.at("batch").at("min").get<int>();
    engine.info.max_batch = description.at("batch").at("max").get<int>();
    engine.format = description.at("format").get<std::string>();
    engine.library_version = description.at("library_version").get<std::string>();
    const auto& gpu = description.at("gpu");
    engine.gpu_name = optional_text(gpu, "name");
    engine.capability = optional_text(gpu, "minimum");
    if (gpu.contains("capabilities"))
        engine.capabilities = gpu.at("capabilities").get<std::vector<std::string>>();
    if (engine.capability.empty())
        engine.capability = gpu.at("compute_capability").get<std::string>();
    engine.input = tensor_name(description.at("inputs"));
    engine.output = tensor_name(description.at("outputs"));
    engine.rebuild = description.at("rebuild").get<std::string>();
    return engine;
}

[[noreturn]] void refuse(const Engine& engine, const std::string& reason) {
    throw InputError(text(engine.info.path) + ": " + reason + "; rebuild it by: " + engine.rebuild);
}

/// Compute capability `8.6` as a number that can be compared.
int number_of(const std::string& capability) {
    std::istringstream stream(capability);
    int major = 0, minor = 0;
    char point = 0;
    stream >> major >> point >> minor;
    return 100 * major + minor;
}

std::string joined(const std::vector<std::string>& words) {
    std::string line;
    for (const auto& word : words)
        line += (line.empty() ? "" : ", ") + word;
    return line;
}

}  // namespace

Engine read_engine(const path& file) {
    const path sidecar = path(file).concat(".json");
    const auto description = read_json(sidecar, file);
    Engine engine;
    std::string digest;
    try {
        engine = parse(file, description);
        digest = description.at("engine_sha256").get<std::string>();
    } catch (const json::exception& error) {
        throw InputError(text(sidecar) + ": not an engine's sidecar (" + error.what() + ")");
    }
    engine.plan = read_bytes(file);
    if (sha256(engine.plan) != digest)
        refuse(engine, "the file is not the one its sidecar describes (SHA-256 differs)");
    return engine;
}

void require_match(const Engine& engine, const std::string& format, const std::string& version,
                   const std::string& gpu_name, int major, int minor) {
    const auto here = std::to_string(major) + "." + std::to_string(minor);
    if (engine.format != format)
        refuse(engine, "a " + engine.format + " engine, and this program was built with " + format);
    if (engine.library_version != version)
        refuse(engine,
               "built by " + format + " " + engine.library_version + ", installed is " + version);
    const bool any_name = engine.gpu_name.empty();  // every GPU from a capability on
    const auto& listed = engine.capabilities;
    if (!listed.empty() && std::find(listed.begin(), listed.end(), here) == listed.end())
        refuse(engine, "built for compute capability " + joined(listed) + ", " + gpu_name +
                           " has " + here);
    if (any_name && number_of(here) < number_of(engine.capability))
        refuse(engine, "needs compute capability " + engine.capability + " or later, " + gpu_name +
                           " has " + here);
    if (!any_name && (engine.gpu_name != gpu_name || engine.capability != here))
        refuse(engine, "built for " + engine.gpu_name + " (compute capability " +
                           engine.capability + "), this is " + gpu_name + " (" + here + ")");
}

}  // namespace detector
