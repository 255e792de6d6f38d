// Differences of two tensors, summed where they lie: one block sums one piece of a fixed number of pairs, in an order
// that depends on nothing else. The host adds the pieces up in their order.

#define THREADS 256
#define GROUP 8 // pairs that a thread takes together
#define UNROLL 2
#define FLOAT64 3

typedef unsigned long long u64;

struct Piece {
    u64 reference;
    u64 target;
    unsigned count;
    unsigned reference_type;
    unsigned target_type;
    float threshold;
};

struct Sums {
    double reference_squares, target_squares, error_squares, error_sum, error_max;
    u64 count, beyond;
    u64 reference_nan, reference_infinite, target_nan, target_infinite, differing;
};

__device__ __forceinline__ float half_to_float(unsigned short bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

__device__ __forceinline__ double value(u64 address, unsigned type, unsigned i) {
    switch (type) {
    case 0: return (double)__ldcs((const float*)address + i);
    case 1: return (double)half_to_float(__ldcs((const unsigned short*)address + i));
    case 2: return (double)__uint_as_float((unsigned)__ldcs((const unsigned short*)address + i) << 16);
    default: return __ldcs((const double*)address + i);
    }
}

__device__ __forceinline__ void take(Sums& sums, double r, double t, double threshold) {
    if (isfinite(r) && isfinite(t)) {
        double error = fabs(r - t);
        sums.reference_squares += r * r;
        sums.target_squares += t * t;
        sums.error_squares += error * error;
        sums.error_sum += error;
        sums.error_max = fmax(sums.error_max, error);
        sums.beyond += fabs(r) > threshold;
        sums.count += 1;
    } else {
        sums.reference_nan += isnan(r);
        sums.reference_infinite += isinf(r);
        sums.target_nan += isnan(t);
        sums.target_infinite += isinf(t);
        sums.differing += !(r == t || (isnan(r) && isnan(t)));
    }
}

__device__ __forceinline__ void add(Sums& sums, const Sums& other) {
    sums.reference_squares += other.reference_squares;
    sums.target_squares += other.target_squares;
    sums.error_squares += other.error_squares;
    sums.error_sum += other.error_sum;
    sums.error_max = fmax(sums.error_max, other.error_max);
    sums.count += other.count;
    sums.beyond += other.beyond;
    sums.reference_nan += other.reference_nan;
    sums.reference_infinite += other.reference_infinite;
    sums.target_nan += other.target_nan;
    sums.target_infinite += other.target_infinite;
    sums.differing += other.differing;
}

// Types that are `float` numbers: `one` value at an index, and value `i` of a group that was loaded whole.
struct Float32 {
    static const unsigned VECTORS = 2;
    static __device__ __forceinline__ float one(u64 address, unsigned i) { return __ldcs((const float*)address + i); }
    static __device__ __forceinline__ float of(const uint4* group, unsigned i) {
        return __uint_as_float((&group[i / 4].x)[i % 4]);
    }
};
struct Float16 {
    static const unsigned VECTORS = 1;
    static __device__ __forceinline__ float one(u64 address, unsigned i) {
        return half_to_float(__ldcs((const unsigned short*)address + i));
    }
    static __device__ __forceinline__ float of(const uint4* group, unsigned i) {
        return half_to_float((&group->x)[i / 2] >> (i % 2 * 16));
    }
};
struct BFloat16 {
    static const unsigned VECTORS = 1;
    static __device__ __forceinline__ float one(u64 address, unsigned i) {
        return __uint_as_float((unsigned)__ldcs((const unsigned short*)address + i) << 16);
    }
    static __device__ __forceinline__ float of(const uint4* group, unsigned i) {
        unsigned pair = (&group->x)[i / 2];
        return __uint_as_float(i % 2 ? pair & 0xffff0000u : pair << 16);
    }
};

// A finite pair, whose products are exact. What is not finite makes a sum of squares infinite or NaN, which finite
// `float` numbers never do.
__device__ __forceinline__ void take_finite(Sums& sums, float r, float t, float threshold) {
    double error = fabs((double)r - (double)t);
    sums.reference_squares = fma((double)r, (double)r, sums.reference_squares);
    sums.target_squares = fma((double)t, (double)t, sums.target_squares);
    sums.error_squares = fma(error, error, sums.error_squares);
    sums.error_sum += error;
    sums.error_max = sums.error_max < error ? error : sums.error_max;
    sums.beyond += fabsf(r) > threshold;
}

// Each thread takes every THREADS-th group, whether it can be loaded whole or not, so that the order of the sums does
// not depend on where a tensor lies.
template <class R, class T> __device__ void sum_finite(Sums& sums, const Piece& piece) {
    unsigned whole = piece.count / GROUP;
    if ((piece.reference | piece.target) % sizeof(uint4) == 0) {
        const uint4* reference = (const uint4*)piece.reference;
        const uint4* target = (const uint4*)piece.target;
        for (unsigned base = threadIdx.x; base < whole; base += THREADS * UNROLL) {
            uint4 r[UNROLL][R::VECTORS], t[UNROLL][T::VECTORS];
#pragma unroll
            for (unsigned u = 0; u < UNROLL; u++)
                if (base + u * THREADS < whole) {
                    unsigned group = base + u * THREADS;
#pragma unroll
                    for (unsigned k = 0; k < R::VECTORS; k++) r[u][k] = __ldcs(reference + group * R::VECTORS + k);
#pragma unroll
                    for (unsigned k = 0; k < T::VECTORS; k++) t[u][k] = __ldcs(target + group * T::VECTORS + k);
                }
#pragma unroll
            for (unsigned u = 0; u < UNROLL; u++)
                if (base + u * THREADS < whole)
#pragma unroll
                    for (unsigned i = 0; i < GROUP; i++)
                        take_finite(sums, R::of(r[u], i), T::of(t[u], i), piece.threshold);
        }
    } else {
        for (unsigned group = threadIdx.x; group < whole; group += THREADS)
            for (unsigned i = group * GROUP; i < (group + 1) * GROUP; i++)
                take_finite(sums, R::one(piece.reference, i), T::one(piece.target, i), piece.threshold);
    }
    for (unsigned i = whole * GROUP + threadIdx.x; i < piece.count; i += THREADS)
        take_finite(sums, R::one(piece.reference, i), T::one(piece.target, i), piece.threshold);
}

template <class R> __device__ void sum_finite_with(Sums& sums, const Piece& piece) {
    switch (piece.target_type) {
    case 0: sum_finite<R, Float32>(sums, piece); break;
    case 1: sum_finite<R, Float16>(sums, piece); break;
    case 2: sum_finite<R, BFloat16>(sums, piece); break;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) sum_pairs(const Piece* pieces, Sums* results) {
    __shared__ Sums shared[THREADS];
    Piece piece = pieces[blockIdx.x];
    Sums sums = {};
    bool exact = piece.reference_type != FLOAT64 && piece.target_type != FLOAT64;
    if (exact) {
        switch (piece.reference_type) {
        case 0: sum_finite_with<Float32>(sums, piece); break;
        case 1: sum_finite_with<Float16>(sums, piece); break;
        case 2: sum_finite_with<BFloat16>(sums, piece); break;
        }
        if (threadIdx.x == 0) sums.count = piece.count;
    }
    bool finite = exact && isfinite(sums.reference_squares) && isfinite(sums.target_squares);
    if (!__syncthreads_and(finite)) {
        sums = {};
        for (unsigned i = threadIdx.x; i < piece.count; i += THREADS) {
            double r = value(piece.reference, piece.reference_type, i);
            double t = value(piece.target, piece.target_type, i);
            take(sums, r, t, piece.threshold);
        }
    }
    shared[threadIdx.x] = sums;
    __syncthreads();
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) add(shared[threadIdx.x], shared[threadIdx.x + half]);
        __syncthreads();
    }
    if (threadIdx.x == 0) results[blockIdx.x] = shared[0];
}

struct Row {
    u64 address;
    unsigned count;
    unsigned type;
};

struct Best {
    double value;
    unsigned index;
    unsigned padding;
};

// The `k` largest values of each row, the best first; equal values by index, NaN never. Fewer than `k` numbers leave the
// rest at the largest index there is. One block a row.
extern "C" __global__ void __launch_bounds__(THREADS) top_k(const Row* rows, unsigned k, Best* best) {
    __shared__ double values[THREADS];
    __shared__ unsigned indices[THREADS];
    const unsigned NONE = 0xffffffffu;
    Row row = rows[blockIdx.x];
    double last_value = 0.0;
    unsigned last = NONE;
    for (unsigned rank = 0; rank < k; rank++) {
        double mine = 0.0;
        unsigned index = NONE;
        for (unsigned i = threadIdx.x; i < row.count; i += THREADS) {
            double x = value(row.address, row.type, i);
            bool behind = last == NONE || x < last_value || (x == last_value && i > last);
            if (!isnan(x) && behind && (index == NONE || x > mine)) {
                mine = x;
                index = i;
            }
        }
        values[threadIdx.x] = mine;
        indices[threadIdx.x] = index;
        __syncthreads();
        for (unsigned half = THREADS / 2; half > 0; half /= 2) {
            if (threadIdx.x < half) {
                double x = values[threadIdx.x + half];
                unsigned i = indices[threadIdx.x + half];
                bool better = i != NONE && (indices[threadIdx.x] == NONE || x > values[threadIdx.x] ||
                                            (x == values[threadIdx.x] && i < indices[threadIdx.x]));
                if (better) {
                    values[threadIdx.x] = x;
                    indices[threadIdx.x] = i;
                }
            }
            __syncthreads();
        }
        last_value = values[0];
        last = indices[0];
        if (threadIdx.x == 0) best[blockIdx.x * k + rank] = {last_value, last, 0};
        __syncthreads();
        if (last == NONE) { // uniform: all threads read the same
            for (unsigned rest = rank + 1 + threadIdx.x; rest < k; rest += THREADS) best[blockIdx.x * k + rest] = {0.0, NONE, 0};
            return;
        }
    }
}
