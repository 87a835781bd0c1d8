# TensorRT or TensorRT-RTX, and the CUDA runtime, as the target TensorRT::TensorRT.
#
#   TENSORRT_ROOT         folder with include/ and lib/ of TensorRT or of the TensorRT-RTX SDK
#   TENSORRT_INCLUDE_DIR  folder of NvInfer.h, if it is elsewhere
#   TENSORRT_LIBRARY      libnvinfer or libtensorrt_rtx, if it is elsewhere
#   CUDA_ROOT             folder with include/ and lib64/ of CUDA
#
# TensorRT_FORMAT becomes `tensorrt` or `tensorrt-rtx`: engines of the other one cannot be run.

find_path(TENSORRT_INCLUDE_DIR NvInfer.h
  HINTS ${TENSORRT_ROOT} ENV TENSORRT_ROOT PATH_SUFFIXES include)
find_library(TENSORRT_LIBRARY NAMES nvinfer nvinfer_11 nvinfer_10 tensorrt_rtx
  HINTS ${TENSORRT_ROOT} ENV TENSORRT_ROOT PATH_SUFFIXES lib lib64)
find_path(CUDART_INCLUDE_DIR cuda_runtime_api.h
  HINTS ${CUDA_ROOT} ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES include)
find_library(CUDART_LIBRARY cudart
  HINTS ${CUDA_ROOT} ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES lib64 lib lib/x64)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TensorRT
  REQUIRED_VARS TENSORRT_LIBRARY TENSORRT_INCLUDE_DIR CUDART_LIBRARY CUDART_INCLUDE_DIR
  REASON_FAILURE_MESSAGE "set -DTENSORRT_ROOT=<folder> and -DCUDA_ROOT=<folder>, see README.md")

if(TensorRT_FOUND)
  get_filename_component(_tensorrt_name "${TENSORRT_LIBRARY}" NAME)
  if(_tensorrt_name MATCHES "rtx")
    set(TensorRT_FORMAT tensorrt-rtx)
  else()
    set(TensorRT_FORMAT tensorrt)
  endif()
  if(NOT TARGET TensorRT::TensorRT)
    add_library(TensorRT::TensorRT UNKNOWN IMPORTED)
    set_target_properties(TensorRT::TensorRT PROPERTIES
      IMPORTED_LOCATION "${TENSORRT_LIBRARY}"
      INTERFACE_INCLUDE_DIRECTORIES "${TENSORRT_INCLUDE_DIR};${CUDART_INCLUDE_DIR}"
      INTERFACE_LINK_LIBRARIES "${CUDART_LIBRARY}")
  endif()
endif()
mark_as_advanced(TENSORRT_INCLUDE_DIR TENSORRT_LIBRARY CUDART_INCLUDE_DIR CUDART_LIBRARY)
