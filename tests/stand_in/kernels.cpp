// calib's own kernels on the host: the CUDA C++ of `src/backend/cuda/*.cu` itself, compiled as C++. Every thread of a block
// is a context of its own that runs until it has to wait for the others.
#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <ucontext.h>
#include <vector>

#include "stand_in.h"

namespace {

struct Index {
    unsigned x;
};
Index threadIdx, blockIdx;

struct Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool ended = false;
    uint64_t slot = 0; // what it hands to the others at a barrier
};

std::vector<Thread> threads;
ucontext_t scheduler;
const std::function<void()>* body;
// The votes of the barrier that is being reached, and of the one that was left last.
bool all_votes, any_votes, all_voted, any_voted;

void yield() { swapcontext(&threads[threadIdx.x].context, &scheduler); }

void barrier(bool vote) {
    all_votes &= vote;
    any_votes |= vote;
    yield();
}

void begin() {
    (*body)();
    threads[threadIdx.x].ended = true;
    yield();
}

void run_block(unsigned count, const std::function<void()>& kernel) {
    const size_t STACK = 1 << 16;
    body = &kernel;
    if (threads.size() < count) threads.resize(count);
    for (unsigned i = 0; i < count; i++) {
        Thread& thread = threads[i];
        if (!thread.stack) thread.stack.reset(new char[STACK]);
        thread.ended = false;
        getcontext(&thread.context);
        thread.context.uc_stack = {thread.stack.get(), 0, STACK};
        thread.context.uc_link = nullptr;
        makecontext(&thread.context, begin, 0);
    }
    for (bool running = true; running;) {
        running = false;
        all_votes = true;
        any_votes = false;
        for (unsigned i = 0; i < count; i++)
            if (!threads[i].ended) {
                threadIdx.x = i;
                swapcontext(&scheduler, &threads[i].context);
                running = true;
            }
        all_voted = all_votes;
        any_voted = any_votes;
    }
}

float from_half(unsigned short bits) {
    unsigned sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ffu;
    float magnitude = exponent == 31  ? (fraction ? NAN : INFINITY)
                      : exponent == 0 ? std::ldexp(static_cast<float>(fraction), -24)
                                      : std::ldexp(static_cast<float>(fraction + 1024), static_cast<int>(exponent) - 25);
    return sign ? -magnitude : magnitude;
}

template <class To, class From> To bits_of(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

struct uint4 {
    unsigned x, y, z, w;
};
uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

template <class T> T __ldcs(const T* address) { return *address; }
int __float_as_int(float x) { return bits_of<int>(x); }
float __int_as_float(int x) { return bits_of<float>(x); }
unsigned __float_as_uint(float x) { return bits_of<unsigned>(x); }
float __uint_as_float(unsigned x) { return bits_of<float>(x); }
// Rounded towards zero: the sum of two floats is exact in a double as they are used here.
float __fadd_rz(float a, float b) {
    double sum = static_cast<double>(a) + static_cast<double>(b);
    auto rounded = static_cast<float>(sum);
    return std::fabs(static_cast<double>(rounded)) > std::fabs(sum) ? std::nextafter(rounded, 0.0f) : rounded;
}
void __syncthreads() { barrier(true); }
int __syncthreads_and(int vote) { return barrier(vote != 0), all_voted; }
int __syncthreads_or(int vote) { return barrier(vote != 0), any_voted; }
template <class T> T __shfl_down_sync(unsigned, T value, int offset) {
    std::memcpy(&threads[threadIdx.x].slot, &value, sizeof value);
    barrier(true);
    unsigned from = threadIdx.x + static_cast<unsigned>(offset);
    T theirs = value;
    if (from / 32 == threadIdx.x / 32 && from < threads.size()) std::memcpy(&theirs, &threads[from].slot, sizeof theirs);
    barrier(true);
    return theirs;
}
template <class T> void atomicAdd(T* to, T value) { *to += value; }
template <class T> void atomicMin(T* to, T value) { *to = std::min(*to, value); }
template <class T> void atomicMax(T* to, T value) { *to = std::max(*to, value); }

using std::fabs, std::fma, std::fmax, std::fmaxf, std::fminf, std::isfinite, std::isinf, std::isnan;
int min(int a, int b) { return std::min(a, b); }
unsigned long long min(unsigned long long a, unsigned long long b) { return std::min(a, b); }
int max(int a, int b) { return std::max(a, b); }

} // namespace

#define __device__
#define __global__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static
// The sources are made by `build.sh`, which takes `extern "C"` away and puts `from_half` in the place of its instruction.
namespace pairs {
#include "pairs.inc"
}
#undef THREADS
#undef UNROLL
#undef FLOAT64
namespace magnitudes {
#include "magnitudes.inc"
}

namespace stand_in {

template <class... A>
std::function<void()> launch(void (*kernel)(A...), unsigned blocks, unsigned count, void** parameters) {
    std::tuple<A...> arguments = [&]<size_t... I>(std::index_sequence<I...>) {
        return std::tuple<A...>{*static_cast<A*>(parameters[I])...};
    }(std::index_sequence_for<A...>{});
    return [=] {
        for (unsigned block = 0; block < blocks; block++) {
            blockIdx.x = block;
            run_block(count, [&] { std::apply(kernel, arguments); });
        }
    };
}

std::function<void()> prepare_kernel(const std::string& name, unsigned blocks, unsigned threads, void** parameters) {
    if (name == "sum_pairs") return launch(pairs::sum_pairs, blocks, threads, parameters);
    if (name == "top_k") return launch(pairs::top_k, blocks, threads, parameters);
    if (name == "count_values") return launch(magnitudes::count_values, blocks, threads, parameters);
    if (name == "count_beyond") return launch(magnitudes::count_beyond, blocks, threads, parameters);
    if (name == "rescale") return launch(magnitudes::rescale, blocks, threads, parameters);
    return {};
}

} // namespace stand_in
