#include "tensorrt_backend.hpp"

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "input_error.hpp"

namespace detector {

namespace {

void check(cudaError_t status, const char* what) {
    if (status != cudaSuccess)
        throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

/// Keeps the library's last error for our own message, and prints nothing.
class LastError final : public nvinfer1::ILogger {
  public:
    void log(Severity severity, const char* message) noexcept override {
        if (severity <= Severity::kERROR)
            text_ = message;
    }
    std::string text() const { return text_.empty() ? "no reason given" : text_; }

  private:
    std::string text_;
};

struct FreeDevice {
    void operator()(void* memory) const { cudaFree(memory); }
};
using DeviceMemory = std::unique_ptr<void, FreeDevice>;

DeviceMemory device_floats(std::size_t count) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, count * sizeof(float)), "GPU memory");
    return DeviceMemory(memory);
}

struct DestroyStream {
    void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};
using Stream = std::unique_ptr<std::remove_pointer_t<cudaStream_t>, DestroyStream>;

Stream make_stream() {
    cudaStream_t stream = nullptr;
    check(cudaStreamCreate(&stream), "GPU stream");
    return Stream(stream);
}

std::string library_version() {
    return std::to_string(getInferLibMajorVersion()) + "." +
           std::to_string(getInferLibMinorVersion()) + "." +
           std::to_string(getInferLibPatchVersion()) + "." +
           std::to_string(getInferLibBuildVersion());
}

/// Throws InputError unless there is a GPU, and the engine is for it and for this library.
void require_usable(const Engine& engine) {
    int device = 0;
    cudaDeviceProp gpu{};
    if (cudaGetDevice(&device) != cudaSuccess ||
        cudaGetDeviceProperties(&gpu, device) != cudaSuccess)
        throw InputError(text(engine.info.path) +
                         ": needs an NVIDIA GPU and none is available here; the ONNX file runs on "
                         "the CPU");
    require_match(engine, TENSORRT_FORMAT, library_version(), gpu.name, gpu.major, gpu.minor);
}

class TensorRtBackend final : public Backend {
  public:
    explicit TensorRtBackend(const Engine& engine)
        : Backend(engine.info), input_(engine.input), output_(engine.output) {
        runtime_.reset(nvinfer1::createInferRuntime(logger_));
        if (runtime_)
            engine_.reset(runtime_->deserializeCudaEngine(engine.plan.data(), engine.plan.size()));
        if (engine_)
            context_.reset(engine_->createExecutionContext());
        if (!context_)
            throw InputError(text(engine.info.path) + ": " TENSORRT_FORMAT " cannot load it (" +
                             logger_.text() + "); rebuild it by: " + engine.rebuild);
    }

    Decoded run(const std::vector<float>& images, int count) override {
        const nvinfer1::Dims4 sides(count, 3, info().imgsz, info().imgsz);
        if (!context_->setInputShape(input_.c_str(), sides))
            fail();
        const auto dims = context_->getTensorShape(output_.c_str());
        const std::vector<std::int64_t> shape(dims.d, dims.d + std::max(dims.nbDims, 0));
        const auto answer = checked(nullptr, shape, count);  // its sides; the values come below
        reserve(images.size(), static_cast<std::size_t>(count) * answer.rows * answer.columns);
        copy(source_.get(), images.data(), images.size(), cudaMemcpyHostToDevice);
        if (!context_->setTensorAddress(input_.c_str(), source_.get()) ||
            !context_->setTensorAddress(output_.c_str(), target_.get()) ||
            !context_->enqueueV3(stream_.get()))
            fail();
        copy(decoded_.data(), target_.get(), decoded_.size(), cudaMemcpyDeviceToHost);
        check(cudaStreamSynchronize(stream_.get()), "the engine");
        return checked(decoded_.data(), shape, count);
    }

  private:
    /// Makes room for a batch on the GPU; memory grows and is kept for the next one.
    void reserve(std::size_t input, std::size_t output) {
        if (input > input_size_)
            source_ = device_floats(input_size_ = input);
        if (output > output_size_)
            target_ = device_floats(output_size_ = output);
        decoded_.resize(output);
    }

    void copy(void* to, const void* from, std::size_t floats, cudaMemcpyKind kind) {
        check(cudaMemcpyAsync(to, from, floats * sizeof(float), kind, stream_.get()), "GPU copy");
    }

    [[noreturn]] void fail() const {
        throw std::runtime_error(text(info().path) + ": the engine failed: " + logger_.text());
    }

    LastError logger_;  // outlives the library's objects, which go in reverse order
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    Stream stream_ = make_stream();
    std::string input_;
    std::string output_;
    DeviceMemory source_;
    DeviceMemory target_;
    std::size_t input_size_ = 0;  // floats
    std::size_t output_size_ = 0;
    std::vector<float> decoded_;
};

}  // namespace

std::unique_ptr<Backend> open_tensorrt(const Engine& engine) {
    require_usable(engine);
    return std::make_unique<TensorRtBackend>(engine);
}

}  // namespace detector
