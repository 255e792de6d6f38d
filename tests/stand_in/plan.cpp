#include "plan.h"

#include <NvInferVersion.h>

#include <cstring>

namespace stand_in {
namespace {

void put(std::string* to, uint64_t number) { to->append(reinterpret_cast<const char*>(&number), 8); }

void put(std::string* to, const std::string& bytes) {
    put(to, bytes.size());
    to->append(bytes);
}

void put(std::string* to, const Triples& triples) {
    put(to, triples.size());
    for (const auto& [name, triple] : triples) {
        put(to, name);
        for (const Extents& numbers : triple) {
            put(to, numbers.size());
            for (int64_t number : numbers) put(to, static_cast<uint64_t>(number));
        }
    }
}

struct Reader {
    const std::string& bytes;
    size_t at;
    bool good = true;

    uint64_t number() {
        uint64_t number = 0;
        good = good && at + 8 <= bytes.size();
        if (good) std::memcpy(&number, bytes.data() + at, 8);
        at += 8;
        return number;
    }

    std::string text() {
        uint64_t size = number();
        good = good && size <= bytes.size() - at;
        std::string text = good ? bytes.substr(at, size) : "";
        at += size;
        return text;
    }

    Triples triples() {
        Triples found;
        for (uint64_t left = number(); good && left > 0; left--)
            for (Extents& numbers : found[text()])
                for (uint64_t count = number(); good && count > 0; count--) numbers.push_back(static_cast<int64_t>(number()));
        return found;
    }
};

} // namespace

std::string write_plan(const Plan& plan) {
    std::string body;
    put(&body, std::string(PLAN_MARK));
    put(&body, plan.capabilities.size());
    for (int capability : plan.capabilities) put(&body, static_cast<uint64_t>(capability));
    put(&body, plan.detailed);
    put(&body, plan.profile);
    put(&body, plan.values);
    put(&body, plan.model);
    std::string bytes(PLAN_HEADER, '\0');
    std::memcpy(bytes.data(), NV_TENSORRT_MAJOR == 1 ? "vtrt" : "ftrt", 4);
    uint64_t size = PLAN_HEADER + body.size();
    std::memcpy(bytes.data() + 16, &size, 8);
    const char version[3] = {NV_TENSORRT_MAJOR, NV_TENSORRT_MINOR, NV_TENSORRT_PATCH};
    std::memcpy(bytes.data() + 24, version, 3);
    return bytes + body;
}

bool read_plan(const std::string& bytes, Plan* plan) {
    Reader reader{bytes, PLAN_HEADER};
    if (reader.text() != PLAN_MARK) return false;
    for (uint64_t left = reader.number(); reader.good && left > 0; left--)
        plan->capabilities.push_back(static_cast<int>(reader.number()));
    plan->detailed = reader.number() != 0;
    plan->profile = reader.triples();
    plan->values = reader.triples();
    plan->model = reader.text();
    return reader.good && reader.at == bytes.size();
}

} // namespace stand_in
