#pragma once

#include <stdexcept>

namespace detector {

/// A file, option or value from outside that cannot be used: one line, exit code 2.
class InputError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

}  // namespace detector
