#include "backend.hpp"

#include <string>

#include "input_error.hpp"
#include "sidecar.hpp"
#ifdef WITH_ONNXRUNTIME
#include "onnxruntime_backend.hpp"
#endif
#ifdef WITH_TENSORRT
#include "tensorrt_backend.hpp"
#endif

namespace detector {

namespace {

std::unique_ptr<Backend> open_onnx(const std::filesystem::path& path, int threads) {
#ifdef WITH_ONNXRUNTIME
    return open_onnxruntime(path, threads);
#else
    static_cast<void>(threads);
    throw InputError(text(path) +
                     ": this program was built without ONNX Runtime; build it with "
                     "-DWITH_ONNXRUNTIME=ON");
#endif
}

std::unique_ptr<Backend> open_engine(const std::filesystem::path& path) {
    const Engine engine = read_engine(path);
#ifdef WITH_TENSORRT
    return open_tensorrt(engine);
#else
    throw InputError(text(path) + ": a " + engine.format +
                     " engine, and this program was built without TensorRT; build it with "
                     "-DWITH_TENSORRT=ON");
#endif
}

}  // namespace

Decoded Backend::checked(const float* data, const std::vector<std::int64_t>& shape,
                         int count) const {
    const bool as_exported =
        shape.size() == 3 && shape[0] == count && shape[1] > 0 && shape[2] == info_.columns();
    if (!as_exported) {
        std::string got;
        for (const auto side : shape)
            got += (got.empty() ? "" : ", ") + std::to_string(side);
        throw InputError(text(info_.path) + ": its output has the shape (" + got + "), not (" +
                         std::to_string(count) + ", predictions, " +
                         std::to_string(info_.columns()) + "); export it with decoded output");
    }
    return {data, static_cast<int>(shape[1]), static_cast<int>(shape[2])};
}

std::unique_ptr<Backend> open_backend(const std::filesystem::path& path, int threads) {
    const auto kind = path.extension();
    if (kind != ".onnx" && kind != ".engine")
        throw InputError(text(path) + ": unknown kind of model file; known: .onnx, .engine");
    if (!std::filesystem::is_regular_file(path))
        throw InputError(text(path) + ": no such file");
    return kind == ".onnx" ? open_onnx(path, threads) : open_engine(path);
}

}  // namespace detector
