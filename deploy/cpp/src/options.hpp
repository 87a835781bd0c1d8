#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "select.hpp"

namespace detector {

/// The command line.
struct Options {
    std::filesystem::path weights;
    std::vector<std::filesystem::path> sources;  // images, videos, folders
    Thresholds thresholds;
    int batch = 1;              // images that the network gets at once
    int threads = 0;            // of the CPU; 0: as the runtime likes
    std::filesystem::path out;  // new folder for the drawings; empty: detections
    bool pictures = true;
    bool json = false;
    bool help = false;
};

/// Throws InputError naming the option, its value and what is allowed.
Options parse_options(const std::vector<std::string>& arguments);

/// What `--help` prints.
std::string usage();

}  // namespace detector
