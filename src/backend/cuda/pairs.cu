// Differences of two tensors, summed where they lie: one block sums one piece of a fixed number of pairs, in an order
// that depends on nothing else. The host adds the pieces up in their order.

#define THREADS 256

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

__device__ __forceinline__ double value(u64 address, unsigned type, unsigned i) {
    switch (type) {
    case 0: return (double)__ldcs((const float*)address + i);
    case 1: {
        float x;
        asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(__ldcs((const unsigned short*)address + i)));
        return (double)x;
    }
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

extern "C" __global__ void __launch_bounds__(THREADS) sum_pairs(const Piece* pieces, Sums* results) {
    __shared__ Sums shared[THREADS];
    Piece piece = pieces[blockIdx.x];
    Sums sums = {};
    double threshold = piece.threshold;
    if (piece.reference_type == 0 && piece.target_type == 0 && (piece.reference | piece.target) % 16 == 0) {
        // The same pairs in the same order of a thread as below would be slower: four at a time instead.
        const float4* reference = (const float4*)piece.reference;
        const float4* target = (const float4*)piece.target;
        unsigned whole = piece.count / 4;
#pragma unroll 4
        for (unsigned i = threadIdx.x; i < whole; i += THREADS) {
            float4 r = __ldcs(reference + i), t = __ldcs(target + i);
            take(sums, r.x, t.x, threshold);
            take(sums, r.y, t.y, threshold);
            take(sums, r.z, t.z, threshold);
            take(sums, r.w, t.w, threshold);
        }
        for (unsigned i = whole * 4 + threadIdx.x; i < piece.count; i += THREADS)
            take(sums, value(piece.reference, 0, i), value(piece.target, 0, i), threshold);
    } else {
#pragma unroll 4
        for (unsigned i = threadIdx.x; i < piece.count; i += THREADS) {
            double r = value(piece.reference, piece.reference_type, i);
            double t = value(piece.target, piece.target_type, i);
            take(sums, r, t, threshold);
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

// Indices of the `k` largest values of each row, the best first; equal values by index, NaN never. Fewer than `k`
// numbers leave the rest at the largest index there is. One block a row.
extern "C" __global__ void __launch_bounds__(THREADS) top_k(const Row* rows, unsigned k, unsigned* best) {
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
        if (threadIdx.x == 0) best[blockIdx.x * k + rank] = last;
        __syncthreads();
        if (last == NONE) { // uniform: all threads read the same
            for (unsigned rest = rank + 1 + threadIdx.x; rest < k; rest += THREADS) best[blockIdx.x * k + rest] = NONE;
            return;
        }
    }
}
