#include "onnxruntime_backend.hpp"

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <array>
#include <climits>
#include <cstdint>
#include <string>

#include "input_error.hpp"

namespace detector {

namespace {

/// The metadata of an ONNX file as one JSON object: what parses is JSON, the rest is text.
nlohmann::json metadata_of(const Ort::Session& session) {
    const Ort::AllocatorWithDefaultOptions allocator;
    const auto metadata = session.GetModelMetadata();
    auto description = nlohmann::json::object();
    for (const auto& key : metadata.GetCustomMetadataMapKeysAllocated(allocator)) {
        const auto value = metadata.LookupCustomMetadataMapAllocated(key.get(), allocator);
        auto parsed = nlohmann::json::parse(value.get(), nullptr, false);
        description[key.get()] = parsed.is_discarded() ? nlohmann::json(value.get()) : parsed;
    }
    return description;
}

void require_float(const ModelInfo& info, const Ort::TypeInfo& type, const char* what) {
    if (type.GetTensorTypeAndShapeInfo().GetElementType() != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
        throw InputError(text(info.path) + ": its " + what + " is not float32");
}

/// What the session's file is for; a free batch has no upper limit.
ModelInfo describe(const std::filesystem::path& path, const Ort::Session& session) {
    auto info = read_info(path, metadata_of(session));
    if (session.GetInputCount() != 1 || session.GetOutputCount() != 1)
        throw InputError(text(path) + ": has " + std::to_string(session.GetInputCount()) +
                         " inputs and " + std::to_string(session.GetOutputCount()) +
                         " outputs, 1 and 1 are allowed: export it without NMS in the graph");
    const auto input = session.GetInputTypeInfo(0);
    require_float(info, input, "input");
    require_float(info, session.GetOutputTypeInfo(0), "output");
    const auto shape = input.GetTensorTypeAndShapeInfo().GetShape();
    if (shape.size() != 4 || shape[1] != 3)
        throw InputError(text(path) + ": its input is not (B, 3, H, W)");
    const bool open = shape[0] < 1;
    info.min_batch = open ? 1 : static_cast<int>(shape[0]);
    info.max_batch = open ? INT_MAX : info.min_batch;
    return info;
}

Ort::SessionOptions session_options(int threads) {
    Ort::SessionOptions options;
    options.SetLogSeverityLevel(ORT_LOGGING_LEVEL_ERROR);
    if (threads > 0)
        options.SetIntraOpNumThreads(threads);
    return options;
}

class OnnxRuntimeBackend final : public Backend {
  public:
    OnnxRuntimeBackend(ModelInfo info, Ort::Env env, Ort::Session session)
        : Backend(std::move(info)), env_(std::move(env)), session_(std::move(session)) {
        const Ort::AllocatorWithDefaultOptions allocator;
        input_ = session_.GetInputNameAllocated(0, allocator).get();
        output_ = session_.GetOutputNameAllocated(0, allocator).get();
    }

    Decoded run(const std::vector<float>& images, int count) override {
        const std::array<std::int64_t, 4> shape{count, 3, info().imgsz, info().imgsz};
        // the runtime reads from the tensor only, its signature does not say so
        const auto tensor = Ort::Value::CreateTensor<float>(
            memory_, const_cast<float*>(images.data()), images.size(), shape.data(), shape.size());
        const char* const inputs[] = {input_.c_str()};
        const char* const outputs[] = {output_.c_str()};
        decoded_ = session_.Run(Ort::RunOptions{nullptr}, inputs, &tensor, 1, outputs, 1);
        const auto& answer = decoded_.front();
        return checked(answer.GetTensorData<float>(), answer.GetTensorTypeAndShapeInfo().GetShape(),
                       count);
    }

  private:
    Ort::Env env_;  // outlives the session
    Ort::Session session_;
    Ort::MemoryInfo memory_ = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    std::string input_;
    std::string output_;
    std::vector<Ort::Value> decoded_;
};

std::string one_line(std::string message) {
    std::replace(message.begin(), message.end(), '\n', ' ');
    return message;
}

}  // namespace

std::unique_ptr<Backend> open_onnxruntime(const std::filesystem::path& path, int threads) {
    try {
        Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "detect");
        Ort::Session session(env, path.c_str(), session_options(threads));
        auto info = describe(path, session);
        return std::make_unique<OnnxRuntimeBackend>(std::move(info), std::move(env),
                                                    std::move(session));
    } catch (const Ort::Exception& error) {
        throw InputError(text(path) + ": not a readable ONNX file (" + one_line(error.what()) +
                         ")");
    }
}

}  // namespace detector
