// Magnitudes of tensors, counted where they lie. One launch covers all tensors of a batch: each block takes a piece.
//
// Bin b of a tensor covers [b, b + 1) / 8192 * 2^e. Scaling by a power of two and adding 2^21 rounded towards zero are
// exact, so a value's bin is exact, and the counts are those of the CPU.

#define BINS 8192
#define THREADS 512
#define UNROLL 4
#define INFINITE 0x7f800000u

typedef unsigned long long u64;

struct Piece {
    u64 address;
    u64 first;   // index in its tensor of the first value
    unsigned count;
    unsigned tensor;
    unsigned type;
    unsigned padding;
};

struct Tensor {
    int exponent; // range of the counts before the last `rescale`
    int next;     // range of the counts
    int min_key;  // extremes of all finite values, as integers in the order of the numbers
    int max_key;
    u64 zeros;
    u64 non_finite;
    u64 first_non_finite;
};

// Where a block counts.
struct Bins {
    unsigned* bins;
    float scale; // bins in 1
    float from;  // smaller magnitudes were counted before
};

// What a thread knows of its values beside their bins.
struct Tally {
    float min, max;
    unsigned zeros, non_finite;
    u64 first_non_finite;
};

__device__ __forceinline__ int ordered(float x) {
    int bits = __float_as_int(x);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

__device__ __forceinline__ float power_of_two(int exponent) { return __int_as_float((exponent + 127) << 23); }

// Where a bin lies in shared memory. The many equal values of 16 bits fall into bins at equal distances, which in order
// would share a few banks.
__device__ __forceinline__ unsigned place_of(unsigned bin) { return bin ^ (bin >> 5 & 31); }

// Counts the value. What is out of range, and NaN, goes to a bin behind the last one.
template <bool BEYOND> __device__ __forceinline__ void put(const Bins& to, float x) {
    float place = fminf(fabsf(x) * to.scale, (float)BINS);
    if (BEYOND && fabsf(x) < to.from) place = BINS;
    // The two uppermost bits of the fraction stand below the bin: this is `place_of` in bytes.
    unsigned offset = __float_as_uint(__fadd_rz(place, 2097152.0f)) & 0xfffcu;
    offset ^= offset >> 5 & 0x7cu;
    atomicAdd((unsigned*)((char*)to.bins + offset), 1u);
}

__device__ __forceinline__ void tally_one(Tally& tally, float x, u64 index) {
    unsigned bits = __float_as_uint(x) & 0x7fffffffu;
    if (bits >= INFINITE) {
        tally.non_finite += 1;
        tally.first_non_finite = min(tally.first_non_finite, index);
        return;
    }
    tally.min = fminf(tally.min, x);
    tally.max = fmaxf(tally.max, x);
    tally.zeros += bits == 0;
}

__device__ __forceinline__ float half_to_float(unsigned short bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

// Types: `one` value at an index; of a word of 32 bits the value `of` each part, and of two words part by part the
// `highest` and `lowest`, which keep NaN.
#define OF_TWO_WORDS(name, instruction)                                                                                \
    static __device__ __forceinline__ unsigned name(unsigned a, unsigned b) {                                          \
        unsigned c;                                                                                                    \
        asm(instruction " %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));                                                    \
        return c;                                                                                                      \
    }

struct Float32 {
    static const unsigned IN_WORD = 1, INFINITY_BITS = INFINITE, SIGNS = 0x80000000u;
    static __device__ __forceinline__ float one(u64 address, unsigned i) { return ((const float*)address)[i]; }
    static __device__ __forceinline__ float of(unsigned word, int) { return __uint_as_float(word); }
    OF_TWO_WORDS(highest, "max.NaN.f32")
    OF_TWO_WORDS(lowest, "min.NaN.f32")
};
struct Float16 {
    static const unsigned IN_WORD = 2, INFINITY_BITS = 0x7c007c00u, SIGNS = 0x80008000u;
    static __device__ __forceinline__ float one(u64 address, unsigned i) {
        return half_to_float(((const unsigned short*)address)[i]);
    }
    static __device__ __forceinline__ float of(unsigned word, int i) { return half_to_float(word >> (i * 16)); }
    OF_TWO_WORDS(highest, "max.NaN.f16x2")
    OF_TWO_WORDS(lowest, "min.NaN.f16x2")
};
struct BFloat16 {
    static const unsigned IN_WORD = 2, INFINITY_BITS = 0x7f807f80u, SIGNS = 0x80008000u;
    static __device__ __forceinline__ float one(u64 address, unsigned i) {
        return __uint_as_float((unsigned)((const unsigned short*)address)[i] << 16);
    }
    static __device__ __forceinline__ float of(unsigned word, int i) {
        return __uint_as_float(i ? word & 0xffff0000u : word << 16);
    }
    OF_TWO_WORDS(highest, "max.NaN.bf16x2")
    OF_TWO_WORDS(lowest, "min.NaN.bf16x2")
};
struct Float64 {
    static __device__ __forceinline__ float one(u64 address, unsigned i) { return (float)((const double*)address)[i]; }
};

// FP16 numbers: 1 where a 16-bit value is zero in either type, and their sums.
__device__ __forceinline__ unsigned is_zero(unsigned pair) {
    unsigned ones;
    asm("set.eq.f16x2.f16x2 %0, %1, %2;" : "=r"(ones) : "r"(pair), "r"(0u));
    return ones;
}
OF_TWO_WORDS(sum_of_halves, "add.f16x2")

__device__ Tally empty_tally() {
    float infinity = __uint_as_float(INFINITE);
    Tally tally = {infinity, -infinity, 0, 0, ~0ull};
    return tally;
}

template <bool BEYOND, class T> __device__ void take_each(const Bins& to, Tally& tally, const Piece& piece, unsigned first) {
    for (unsigned i = first + threadIdx.x; i < piece.count; i += THREADS) {
        float x = T::one(piece.address, i);
        put<BEYOND>(to, x);
        tally_one(tally, x, piece.first + i);
    }
}

// 16 bytes at a time, without a branch for what is not finite: that is looked for again where it shows up.
template <bool BEYOND, class T> __device__ void take_words(const Bins& to, Tally& tally, const Piece& piece) {
#if __CUDA_ARCH__ >= 800
    const unsigned WIDTH = 4 * T::IN_WORD;
    if (piece.address % sizeof(uint4) == 0) {
        const uint4* vectors = (const uint4*)piece.address;
        unsigned whole = piece.count / WIDTH;
        unsigned highest = T::INFINITY_BITS | T::SIGNS, lowest = T::INFINITY_BITS;
        for (unsigned base = threadIdx.x; base < whole; base += THREADS * UNROLL) {
            uint4 loaded[UNROLL];
#pragma unroll
            for (unsigned u = 0; u < UNROLL; u++)
                if (base + u * THREADS < whole) loaded[u] = __ldcs(&vectors[base + u * THREADS]);
            unsigned zeros = 0;
#pragma unroll
            for (unsigned k = 0; k < UNROLL * 4; k++)
                if (base + k / 4 * THREADS < whole) {
                    unsigned word = (&loaded[k / 4].x)[k % 4];
                    highest = T::highest(highest, word);
                    lowest = T::lowest(lowest, word);
                    zeros = T::IN_WORD == 1 ? zeros + ((word & ~T::SIGNS) == 0) : sum_of_halves(zeros, is_zero(word));
#pragma unroll
                    for (unsigned i = 0; i < T::IN_WORD; i++) put<BEYOND>(to, T::of(word, i));
                }
            tally.zeros += T::IN_WORD == 1 ? zeros : (unsigned)(half_to_float(zeros) + half_to_float(zeros >> 16));
        }
        bool finite = true;
#pragma unroll
        for (unsigned i = 0; i < T::IN_WORD; i++) {
            float high = T::of(highest, i), low = T::of(lowest, i);
            finite &= high < __uint_as_float(INFINITE) && low > -__uint_as_float(INFINITE);
            tally.max = fmaxf(tally.max, high);
            tally.min = fminf(tally.min, low);
        }
        take_each<BEYOND, T>(to, tally, piece, whole * WIDTH);
        if (!BEYOND && __syncthreads_or(!finite)) {
            tally = empty_tally();
            for (unsigned i = threadIdx.x; i < piece.count; i += THREADS)
                tally_one(tally, T::one(piece.address, i), piece.first + i);
        }
        return;
    }
#endif
    take_each<BEYOND, T>(to, tally, piece, 0);
}

template <class V, class Op> __device__ __forceinline__ V over_warp(V value, Op op) {
    for (int offset = 16; offset > 0; offset /= 2) value = op(value, __shfl_down_sync(0xffffffffu, value, offset));
    return value;
}

__device__ void add_tally(Tensor& tensor, const Tally& tally) {
    auto sum = [](unsigned a, unsigned b) { return a + b; };
    unsigned zeros = over_warp(tally.zeros, sum), bad = over_warp(tally.non_finite, sum);
    u64 first = over_warp(tally.first_non_finite, [](u64 a, u64 b) { return min(a, b); });
    float low = over_warp(tally.min, [](float a, float b) { return fminf(a, b); });
    float high = over_warp(tally.max, [](float a, float b) { return fmaxf(a, b); });
    if (threadIdx.x % 32 != 0) return;
    // Adding zero turns -0 into 0.
    if (low <= high) {
        atomicMin(&tensor.min_key, ordered(low + 0.0f));
        atomicMax(&tensor.max_key, ordered(high + 0.0f));
    }
    if (zeros) atomicAdd(&tensor.zeros, (u64)zeros);
    if (bad) {
        atomicAdd(&tensor.non_finite, (u64)bad);
        atomicMin(&tensor.first_non_finite, first);
    }
}

template <bool BEYOND> __device__ void count_piece(const Piece& piece, Tensor& tensor, u64* counts) {
    __shared__ __align__(16) unsigned bins[BINS + 4];
    int exponent = tensor.next;
    if (BEYOND && exponent == tensor.exponent) return;
    for (unsigned i = threadIdx.x; i < BINS / 4; i += THREADS) ((uint4*)bins)[i] = make_uint4(0, 0, 0, 0);
    __syncthreads();
    Bins to = {bins, power_of_two(13 - exponent), power_of_two(tensor.exponent)};
    Tally tally = empty_tally();
    switch (piece.type) {
    case 0: take_words<BEYOND, Float32>(to, tally, piece); break;
    case 1: take_words<BEYOND, Float16>(to, tally, piece); break;
    case 2: take_words<BEYOND, BFloat16>(to, tally, piece); break;
    case 3: take_each<BEYOND, Float64>(to, tally, piece, 0); break;
    }
    if (!BEYOND) add_tally(tensor, tally);
    __syncthreads();
    u64* total = counts + (u64)piece.tensor * BINS;
    for (unsigned bin = threadIdx.x; bin < BINS; bin += THREADS) {
        unsigned count = bins[place_of(bin)];
        if (count) atomicAdd(&total[bin], (u64)count);
    }
}

// Extremes, zeros and values that are not finite; counts what lies below the range of the counts.
extern "C" __global__ void __launch_bounds__(THREADS, 3) count_values(const Piece* pieces, Tensor* tensors, u64* counts) {
    Piece piece = pieces[blockIdx.x];
    count_piece<false>(piece, tensors[piece.tensor], counts);
}

// Counts what `count_values` found beyond the range, which `rescale` has widened since. Rarely has anything to do.
extern "C" __global__ void __launch_bounds__(THREADS) count_beyond(const Piece* pieces, Tensor* tensors, u64* counts) {
    Piece piece = pieces[blockIdx.x];
    count_piece<true>(piece, tensors[piece.tensor], counts);
}

// One block of 1024 threads a tensor: widens the range of its counts to the extremes and merges bins as they demand.
extern "C" __global__ void __launch_bounds__(1024) rescale(Tensor* tensors, u64* counts) {
    Tensor& tensor = tensors[blockIdx.x];
    u64* total = counts + (u64)blockIdx.x * BINS;
    int old = tensor.next, wanted = old;
    float low = __int_as_float(tensor.min_key ^ ((tensor.min_key >> 31) & 0x7fffffff));
    float high = __int_as_float(tensor.max_key ^ ((tensor.max_key >> 31) & 0x7fffffff));
    bool seen = tensor.min_key <= tensor.max_key;
    if (seen) {
        float amax = fmaxf(fabsf(low), fabsf(high));
        wanted = max((int)(__float_as_uint(amax) >> 23) - 126, old);
    }
    __syncthreads(); // everyone has read the tensor
    unsigned shift = min(wanted - old, 13);
    if (shift > 0) {
        const unsigned MINE = BINS / 1024;
        u64 merged[MINE];
        for (unsigned k = 0; k < MINE; k++) {
            unsigned bin = threadIdx.x + k * 1024;
            u64 sum = 0;
            if (bin < BINS >> shift)
                for (unsigned i = bin << shift; i < (bin + 1) << shift; i++) sum += total[i];
            merged[k] = sum;
        }
        __syncthreads();
        for (unsigned k = 0; k < MINE; k++) total[threadIdx.x + k * 1024] = merged[k];
    }
    if (threadIdx.x == 0) {
        tensor.exponent = old;
        tensor.next = wanted;
    }
}
