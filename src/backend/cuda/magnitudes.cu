// Magnitudes of tensors, counted where they lie. One launch covers all tensors of a batch: each block takes a piece.
//
// Bin b of a tensor covers [b, b + 1) / 8192 * 2^e. Scaling by a power of two and adding 2^23 rounded towards zero are
// exact, so a value's bin is exact, and the counts are those of the CPU.

#define BINS 8192
#define THREADS 256
#define MIN_EXPONENT (-113)
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
    float low; // the extremes at the last `rescale`: clipped activations repeat them, so they are counted apart
    float high;
    u64 zeros;
    u64 non_finite;
    u64 first_non_finite;
};

struct Tally {
    unsigned* bins;
    unsigned from, below; // magnitudes that are counted, as bits
    float scale, low, high;
    float min, max;
    unsigned zeros, lows, highs, non_finite;
    u64 first_non_finite;
};

__device__ __forceinline__ int ordered(float x) {
    int bits = __float_as_int(x);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

__device__ __forceinline__ float scale_of(int exponent) { return __int_as_float((140 - exponent) << 23); }

__device__ __forceinline__ int bin_of(float magnitude, float scale) {
    return __float_as_int(__fadd_rz(magnitude * scale, 8388608.0f)) & (BINS - 1);
}

template <bool EVERYTHING> __device__ __forceinline__ void take(Tally& tally, float x, u64 index) {
    unsigned bits = __float_as_uint(x) & 0x7fffffffu;
    if (bits >= INFINITE) {
        if (EVERYTHING) {
            tally.non_finite += 1;
            tally.first_non_finite = min(tally.first_non_finite, index);
        }
        return;
    }
    if (EVERYTHING) {
        tally.min = fminf(tally.min, x);
        tally.max = fmaxf(tally.max, x);
        if (bits == 0) {
            tally.zeros += 1;
            return;
        }
    }
    if (bits < tally.from || bits >= tally.below) return;
    if (x == tally.high) tally.highs += 1;
    else if (x == tally.low) tally.lows += 1;
    else atomicAdd(&tally.bins[bin_of(__uint_as_float(bits), tally.scale)], 1u);
}

__device__ __forceinline__ float half_to_float(unsigned short bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

struct Float32 {
    static const unsigned WIDTH = 4;
    typedef float Scalar;
    static __device__ __forceinline__ float one(float x) { return x; }
    static __device__ __forceinline__ float of(const uint4& v, int i) { return __uint_as_float((&v.x)[i]); }
};
struct Float16 {
    static const unsigned WIDTH = 8;
    typedef unsigned short Scalar;
    static __device__ __forceinline__ float one(unsigned short x) { return half_to_float(x); }
    static __device__ __forceinline__ float of(const uint4& v, int i) { return half_to_float((&v.x)[i / 2] >> (i % 2 * 16)); }
};
struct BFloat16 {
    static const unsigned WIDTH = 8;
    typedef unsigned short Scalar;
    static __device__ __forceinline__ float one(unsigned short x) { return __uint_as_float((unsigned)x << 16); }
    static __device__ __forceinline__ float of(const uint4& v, int i) {
        unsigned pair = (&v.x)[i / 2];
        return __uint_as_float(i % 2 ? pair & 0xffff0000u : pair << 16);
    }
};
struct Float64 {
    static const unsigned WIDTH = 2;
    typedef double Scalar;
    static __device__ __forceinline__ float one(double x) { return (float)x; }
    static __device__ __forceinline__ float of(const uint4& v, int i) {
        return (float)__hiloint2double((int)(&v.x)[2 * i + 1], (int)(&v.x)[2 * i]);
    }
};

template <bool EVERYTHING, class T> __device__ void take_all(Tally& tally, const Piece& piece) {
    const unsigned UNROLL = 4;
    const typename T::Scalar* values = (const typename T::Scalar*)piece.address;
    unsigned done = 0;
    if (piece.address % sizeof(uint4) == 0) {
        const uint4* vectors = (const uint4*)piece.address;
        unsigned whole = piece.count / T::WIDTH;
        for (unsigned base = threadIdx.x; base < whole; base += THREADS * UNROLL) {
            uint4 loaded[UNROLL];
#pragma unroll
            for (unsigned u = 0; u < UNROLL; u++)
                if (base + u * THREADS < whole) loaded[u] = __ldcs(&vectors[base + u * THREADS]);
#pragma unroll
            for (unsigned u = 0; u < UNROLL; u++)
                if (base + u * THREADS < whole) {
                    u64 index = piece.first + (u64)(base + u * THREADS) * T::WIDTH;
#pragma unroll
                    for (unsigned i = 0; i < T::WIDTH; i++) take<EVERYTHING>(tally, T::of(loaded[u], i), index + i);
                }
        }
        done = whole * T::WIDTH;
    }
    for (unsigned i = done + threadIdx.x; i < piece.count; i += THREADS)
        take<EVERYTHING>(tally, T::one(values[i]), piece.first + i);
}

template <class V, class Op> __device__ __forceinline__ V over_warp(V value, Op op) {
    for (int offset = 16; offset > 0; offset /= 2) value = op(value, __shfl_down_sync(0xffffffffu, value, offset));
    return value;
}

template <bool EVERYTHING> __device__ void count_piece(const Piece& piece, Tensor& tensor, u64* counts) {
    __shared__ unsigned bins[BINS];
    int exponent = tensor.next;
    if (!EVERYTHING && exponent == tensor.exponent) return;
    for (unsigned i = threadIdx.x; i < BINS; i += THREADS) bins[i] = 0;
    __syncthreads();
    float infinity = __uint_as_float(INFINITE);
    Tally tally = {};
    tally.bins = bins;
    tally.from = EVERYTHING ? 0 : (unsigned)(tensor.exponent + 127) << 23;
    tally.below = (unsigned)(exponent + 127) << 23;
    tally.scale = scale_of(exponent);
    tally.low = tensor.low;
    tally.high = tensor.high;
    tally.min = infinity;
    tally.max = -infinity;
    tally.first_non_finite = ~0ull;
    switch (piece.type) {
    case 0: take_all<EVERYTHING, Float32>(tally, piece); break;
    case 1: take_all<EVERYTHING, Float16>(tally, piece); break;
    case 2: take_all<EVERYTHING, BFloat16>(tally, piece); break;
    case 3: take_all<EVERYTHING, Float64>(tally, piece); break;
    }
    auto sum = [](unsigned a, unsigned b) { return a + b; };
    unsigned lows = over_warp(tally.lows, sum), highs = over_warp(tally.highs, sum);
    bool leads = threadIdx.x % 32 == 0;
    if (leads && lows) atomicAdd(&bins[bin_of(fabsf(tally.low), tally.scale)], lows);
    if (leads && highs) atomicAdd(&bins[bin_of(fabsf(tally.high), tally.scale)], highs);
    if (EVERYTHING) {
        unsigned zeros = over_warp(tally.zeros, sum), bad = over_warp(tally.non_finite, sum);
        u64 first = over_warp(tally.first_non_finite, [](u64 a, u64 b) { return min(a, b); });
        float low = over_warp(tally.min, [](float a, float b) { return fminf(a, b); });
        float high = over_warp(tally.max, [](float a, float b) { return fmaxf(a, b); });
        if (leads) {
            // Adding zero turns -0 into 0.
            if (low <= high) {
                atomicMin(&tensor.min_key, ordered(low + 0.0f));
                atomicMax(&tensor.max_key, ordered(high + 0.0f));
            }
            if (zeros) {
                atomicAdd(&tensor.zeros, (u64)zeros);
                atomicAdd(&bins[0], zeros);
            }
            if (bad) {
                atomicAdd(&tensor.non_finite, (u64)bad);
                atomicMin(&tensor.first_non_finite, first);
            }
        }
    }
    __syncthreads();
    u64* total = counts + (u64)piece.tensor * BINS;
    for (unsigned i = threadIdx.x; i < BINS; i += THREADS)
        if (bins[i]) atomicAdd(&total[i], (u64)bins[i]);
}

// Extremes, zeros and values that are not finite; counts what lies below the range of the counts.
extern "C" __global__ void __launch_bounds__(THREADS, 6) count_values(const Piece* pieces, Tensor* tensors, u64* counts) {
    Piece piece = pieces[blockIdx.x];
    count_piece<true>(piece, tensors[piece.tensor], counts);
}

// Counts what `count_values` found beyond the range, which `rescale` has widened since. Rarely has anything to do.
extern "C" __global__ void __launch_bounds__(THREADS) count_beyond(const Piece* pieces, Tensor* tensors, u64* counts) {
    Piece piece = pieces[blockIdx.x];
    count_piece<false>(piece, tensors[piece.tensor], counts);
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
        tensor.low = seen ? low : 0.0f;
        tensor.high = seen ? high : 0.0f;
    }
}
