#pragma once

#include <string>

namespace detector {

/// The SHA-256 digest of `content` as 64 hex digits. Source: FIPS 180-4, sections 4, 5 and 6.2.
std::string sha256(const std::string& content);

}  // namespace detector
