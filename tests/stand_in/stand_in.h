// What all parts of the stand-in share: orders, and the sentence that ends a test.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <string>

#define EXPORTED extern "C" __attribute__((visibility("default")))

namespace stand_in {

// Ends the process with a sentence: the caller broke a rule of the interface that is stood in for.
[[noreturn]] inline void refuse(const std::string& sentence) {
    std::fprintf(stderr, "stand-in: %s\n", sentence.c_str());
    std::fflush(stderr);
    std::abort();
}

inline std::string text(long long number) { return std::to_string(number); }

inline std::string hex(unsigned long long address) {
    char digits[32];
    std::snprintf(digits, sizeof digits, "0x%llx", address);
    return digits;
}

// What can be ordered; `README.md` tells what each does.
inline const std::set<std::string> ORDERS = {
    "build-warns", "capability", "driver", "enqueue-fails", "fail", "fault", "four-bits", "fused-fault", "invalid", "kernel-fails",
    "memory", "names-only", "no-device", "no-inspection", "no-pools", "null-builder", "null-cache", "null-config", "null-context",
    "null-engine", "null-inspector", "null-network", "null-parser", "null-plan", "null-profile", "null-runtime",
    "packed", "refuse-addresses", "refuse-gpu", "slow", "slow-build", "slow-load", "tell-options",
    "vanish", "version"};

// Orders to misbehave, from the variable `STAND_IN`: `key=value` pairs between semicolons. An unknown one ends the test,
// which would wait in vain for what it ordered.
inline const std::map<std::string, std::string>& orders() {
    static const std::map<std::string, std::string> found = [] {
        std::map<std::string, std::string> found;
        const char* variable = std::getenv("STAND_IN");
        std::string rest = variable ? variable : "";
        while (!rest.empty()) {
            std::string one = rest.substr(0, rest.find(';'));
            rest = one.size() < rest.size() ? rest.substr(one.size() + 1) : "";
            size_t equals = one.find('=');
            if (one.empty()) continue;
            if (!ORDERS.count(one.substr(0, equals))) refuse("STAND_IN orders `" + one + "`, which is unknown");
            found[one.substr(0, equals)] = equals == std::string::npos ? "" : one.substr(equals + 1);
        }
        return found;
    }();
    return found;
}

// The value of an order; null where it was not given.
inline const std::string* order(const char* key) {
    auto found = orders().find(key);
    return found == orders().end() ? nullptr : &found->second;
}

inline long long number_of(const char* key, long long otherwise) {
    const std::string* value = order(key);
    return value ? std::atoll(value->c_str()) : otherwise;
}

// `8.9` as 89; what the GPU that is stood in for can do.
inline int capability(const std::string& words) {
    size_t dot = words.find('.');
    return std::atoi(words.c_str()) * 10 + (dot == std::string::npos ? 0 : std::atoi(words.c_str() + dot + 1));
}

} // namespace stand_in
