#include "sha256.hpp"

#include <array>
#include <cstddef>
#include <cstdint>

namespace detector {

namespace {

using State = std::array<std::uint32_t, 8>;

constexpr State initial_state = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

constexpr std::array<std::uint32_t, 64> round_constants = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

constexpr std::size_t block_size = 64;  // bytes

std::uint32_t rotate(std::uint32_t value, int by) {
    return value >> by | value << (32 - by);
}

/// The 64 words that a block is stretched to (6.2.2, step 1).
std::array<std::uint32_t, 64> schedule(const unsigned char* block) {
    std::array<std::uint32_t, 64> words{};
    for (std::size_t i = 0; i < 16; ++i)
        for (std::size_t byte = 0; byte < 4; ++byte)
            words[i] = words[i] << 8 | block[4 * i + byte];
    for (std::size_t i = 16; i < 64; ++i) {
        const auto early = words[i - 15], late = words[i - 2];
        const auto sigma0 = rotate(early, 7) ^ rotate(early, 18) ^ early >> 3;
        const auto sigma1 = rotate(late, 17) ^ rotate(late, 19) ^ late >> 10;
        words[i] = sigma1 + words[i - 7] + sigma0 + words[i - 16];
    }
    return words;
}

void digest_block(State& state, const unsigned char* block) {
    const auto words = schedule(block);
    auto [a, b, c, d, e, f, g, h] = state;
    for (std::size_t i = 0; i < 64; ++i) {
        const auto sum1 = rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25);
        const auto choice = (e & f) ^ (~e & g);
        const auto first = h + sum1 + choice + round_constants[i] + words[i];
        const auto sum0 = rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22);
        const auto majority = (a & b) ^ (a & c) ^ (b & c);
        h = g, g = f, f = e, e = d + first;
        d = c, c = b, b = a, a = first + sum0 + majority;
    }
    const State added = {a, b, c, d, e, f, g, h};
    for (std::size_t i = 0; i < state.size(); ++i)
        state[i] += added[i];
}

/// What follows the last whole block: the rest, a set bit, zeros and the length in bits (5.1.1).
std::string padded_rest(const std::string& content) {
    auto rest = content.substr(content.size() - content.size() % block_size);
    rest += '\x80';
    while (rest.size() % block_size != block_size - 8)
        rest += '\0';
    const auto bits = static_cast<std::uint64_t>(content.size()) * 8;
    for (int shift = 56; shift >= 0; shift -= 8)
        rest += static_cast<char>(bits >> shift & 0xff);
    return rest;
}

}  // namespace

std::string sha256(const std::string& content) {
    auto state = initial_state;
    const auto digest = [&state](const std::string& bytes) {
        const auto* data = reinterpret_cast<const unsigned char*>(bytes.data());
        for (std::size_t at = 0; at + block_size <= bytes.size(); at += block_size)
            digest_block(state, data + at);
    };
    digest(content);
    digest(padded_rest(content));
    std::string hex;
    for (const auto word : state)
        for (int shift = 28; shift >= 0; shift -= 4)
            hex += "0123456789abcdef"[word >> shift & 0xf];
    return hex;
}

}  // namespace detector
