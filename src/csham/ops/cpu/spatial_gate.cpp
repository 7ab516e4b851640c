// Spatial weights from the statistics of the positions: the small middle part of spatial attention, float32.
//
// forward     position = conv(q)              k x k, from q = [mean; max] to one channel, zero padding, no bias
//             s = sigmoid(act(norm(position)) + upsample(neighbor_norm(neighbors)))
// backward    dlogits = ds s (1 - s);  dp = dlogits where act passes, else 0;  du = sums of dlogits over coarse cells
//             dposition, dneighbors: through the batch norms;  dq = conv(dposition), the filter turned by 180 degrees
//             dweight[c, i, j] = sum over b, y, x of dposition[b, y, x] q[c, b, y + i - k / 2, x + j - k / 2]
// saved       q, position, neighbors, s and the statistics of the norms
//
// The 4 k^2 B H W multiply-adds of a backward pass are the cost; the maps are small and stay in the caches.
//
// The upsampling takes the source index ((2 i + 1) coarse) / (2 fine) in integers. A norm in training normalises by the
// batch's statistics and is differentiated through them. The results do not depend on the number of threads: what is
// summed over images is summed for each image, or fixed group of images, and then serially.
#include "kernel.h"

namespace csham {

// Batch norm of one channel.
struct Norm {
  const float* weight;  // (1), null for 1
  const float* bias;    // (1), null for 0
  double eps;
  bool training;  // needs more than one value in the batch, as torch's
  float* mean;    // (1)  in training the batch's, written by the forward pass; else the running statistics, read
  float* var;     // (1)  likewise; the batch's is the biased one, sum (x - mean)^2 / count
};

// All maps are contiguous. Any of B, H, W may be 0 where no norm is in training: the parameters' gradients are zeros.
struct SpatialGate {
  int64_t B, H, W;
  int64_t kernel_size;         // odd; 7 is the fast one
  const float* mean;           // (B, H, W)  over the channels
  const float* max;            // (B, H, W)
  const float* weight;         // (2, kernel_size, kernel_size)  for mean, for max
  Norm norm;                   // of position
  bool relu;                   // act is ReLU (gradient 0 at 0), else the identity
  const float* neighbors;      // (B, coarse_H, coarse_W) before its norm, or null: no such term
  int64_t coarse_H, coarse_W;  // at least 1 and at most H, W; 0 without neighbors
  Norm neighbor_norm;          // not read without neighbors
  float* position;             // (B, H, W)  written by the forward pass, read by the backward pass
  float* s;                    // (B, H, W)  likewise

  int64_t positions() const { return H * W; }
  int64_t coarse_positions() const { return neighbors ? coarse_H * coarse_W : 0; }
};

// Null: not wanted, except ds, dmean, dmax and, with neighbors, dneighbors.
struct SpatialGateGradients {
  const float* ds;               // (B, H, W)
  float* dmean;                  // (B, H, W)
  float* dmax;                   // (B, H, W)
  float* dweight;                // (2, kernel_size, kernel_size)
  float* dneighbors;             // (B, coarse_H, coarse_W)
  float* dnorm_weight;           // (1)
  float* dnorm_bias;             // (1)
  float* dneighbor_norm_weight;  // (1)  zero without neighbors
  float* dneighbor_norm_bias;    // (1)  likewise
};

CSHAM_KERNEL(void spatial_gate(const SpatialGate&))
CSHAM_KERNEL(void spatial_gate_backward(const SpatialGate&, const SpatialGateGradients&))

}  // namespace csham

#if defined(CPU_CAPABILITY)
#include "parallel.h"
#include "vectors.h"

#include <c10/util/Unroll.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <utility>
#include <vector>

namespace csham::CPU_CAPABILITY {

// A thread is worth waking for 10 to 20 us of work.
constexpr int64_t kConvolvedPositions = 4096;
constexpr int64_t kWeighedPositions = 16384;
constexpr int kTileRows = 8;  // of a convolution's output in registers at a time

inline int64_t grain(int64_t positions, int64_t positions_of_image) {
  return std::max<int64_t>(1, positions / std::max<int64_t>(1, positions_of_image));
}

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// One image's map with zeros around it, so that tiles of kTileRows rows and whole vectors need no bounds. A row begins
// at a multiple of the vector's width; the margin to its left is also what the row above has to its right.
class PaddedMap {
 public:
  PaddedMap(int64_t H, int64_t W, int64_t radius)
      : H_(H), W_(W), stride_(round_up(radius, kWidth) + round_up(W, kWidth)) {
    const int64_t margin = round_up(radius, kWidth);
    values_.resize((round_up(H, kTileRows) + 2 * radius) * stride_ + margin + kWidth);
    const auto address = reinterpret_cast<uintptr_t>(values_.data()) / sizeof(float);
    origin_ = values_.data() + round_up(address, kWidth) - address + radius * stride_ + margin;
  }
  PaddedMap(const PaddedMap&) = delete;

  int64_t stride() const { return stride_; }
  const float* at(int64_t y, int64_t x) const { return origin_ + y * stride_ + x; }
  void fill(const float* map) {
    for (int64_t y = 0; y < H_; ++y) std::memcpy(origin_ + y * stride_, map + y * W_, W_ * sizeof(float));
  }

 private:
  int64_t H_, W_, stride_;
  std::vector<float> values_;
  float* origin_;
};

// What f gives for 0 .. N - 1. Not an array to be filled: the loop that constructs its elements would keep GCC from
// holding them in registers.
template <int N, typename F>
C10_ALWAYS_INLINE std::array<Vec, N> collect(const F& f) {
  return [&]<int... i>(std::integer_sequence<int, i...>) C10_ALWAYS_INLINE_ATTRIBUTE {
    return std::array<Vec, N>{f(std::integral_constant<int, i>{})...};
  }(std::make_integer_sequence<int, N>{});
}

using Tile = std::array<Vec, kTileRows>;

// Adds ROWS rows of the filters, from `first` on, times the inputs to the tile: kTileRows rows of one vector at (y, x).
//
// Down a column of the filter each step needs one row more of the input: kTileRows sums, the kTileRows - 1 rows that
// stay and a weight fill the sixteen registers of AVX2, and two loads feed kTileRows multiply-adds.
template <int ROWS>
C10_NOINLINE void add_filter_rows(
    std::initializer_list<const PaddedMap*> inputs, const float* filters, int64_t k, int64_t first, int64_t y,
    int64_t x, Tile& tile) {
  filters += first;
  // A copy, because the compiler would store what it adds to `tile` after each addition.
  Tile sums = collect<kTileRows>([&](auto r) { return tile[r]; });
  for (const PaddedMap* input : inputs) {
    const float* column = input->at(y - k / 2 + first, x - k / 2);
    const int64_t stride = input->stride();
    for (const float* end = column + k; column < end; ++column, filters += k) {
      Tile rows = collect<kTileRows>([&](auto r) { return r < kTileRows - 1 ? load(column + r * stride) : Vec(0); });
      c10::ForcedUnroll<ROWS>{}([&](auto i) {
        const Vec weight(filters[i]);
        c10::ForcedUnroll<kTileRows>{}([&](auto r) {
          // The row that enters takes the register of the row that has just been used for the last time.
          constexpr int row = (decltype(i)::value + decltype(r)::value) % kTileRows;
          if constexpr (r == kTileRows - 1) rows[row] = load(column + (i + r) * stride);
          sums[r] = at::vec::fmadd(weight, rows[row], sums[r]);
        });
      });
    }
  }
  tile = sums;
}

// out = the sum of the inputs' convolutions, (H, W). filters: transposed, (inputs, k, k) by columns. A filter of 7 rows
// is taken in one piece, others in pieces of 7, 3 and 1.
inline void convolve(
    std::initializer_list<const PaddedMap*> inputs, const float* filters, int64_t k, int64_t H, int64_t W, float* out) {
  for (int64_t y = 0; y < H; y += kTileRows) {
    for (int64_t x = 0; x < W; x += kWidth) {
      Tile sums = collect<kTileRows>([](auto) { return Vec(0); });
      int64_t row = 0;
      for (; row + 7 <= k; row += 7) add_filter_rows<7>(inputs, filters, k, row, y, x, sums);
      for (; row + 3 <= k; row += 3) add_filter_rows<3>(inputs, filters, k, row, y, x, sums);
      for (; row < k; ++row) add_filter_rows<1>(inputs, filters, k, row, y, x, sums);
      const int64_t rows = std::min<int64_t>(kTileRows, H - y), count = std::min(kWidth, W - x);
      for (int64_t r = 0; r < rows; ++r) store(out + (y + r) * W + x, sums[r], count);
    }
  }
}

// Adds the gradient of one column of a filter, ROWS of its rows from `first` on, a vector of partial sums for each.
template <int ROWS>
C10_NOINLINE void add_filter_gradient(
    const PaddedMap& q, const PaddedMap& dposition, int64_t H, int64_t W, int64_t radius, int64_t column, int64_t first,
    float* gradient) {
  auto sums = collect<ROWS>([&](auto i) { return load(gradient + i * kWidth); });
  const int64_t stride = dposition.stride();
  for (int64_t y = 0; y < H; ++y) {
    const float* input = q.at(y, column - radius);
    const float* row = dposition.at(y + radius - first, 0);
    for (int64_t x = 0; x < W; x += kWidth) {
      const Vec values = load(input + x);
      c10::ForcedUnroll<ROWS>{}(
          [&](auto i) { sums[i] = at::vec::fmadd(values, load(row + x - i * stride), sums[i]); });
    }
  }
  c10::ForcedUnroll<ROWS>{}([&](auto i) { store(gradient + i * kWidth, sums[i]); });
}

// gradient: (k, k) by columns, a vector of partial sums for each.
inline void add_filter_gradient(
    const PaddedMap& q, const PaddedMap& dposition, int64_t H, int64_t W, int64_t k, float* gradient) {
  for (int64_t column = 0; column < k; ++column, gradient += k * kWidth) {
    const auto rows = [&](auto count, int64_t first) {
      add_filter_gradient<count>(q, dposition, H, W, k / 2, column, first, gradient + first * kWidth);
    };
    int64_t row = 0;
    for (; row + 7 <= k; row += 7) rows(std::integral_constant<int, 7>{}, row);
    for (; row + 3 <= k; row += 3) rows(std::integral_constant<int, 3>{}, row);
    for (; row < k; ++row) rows(std::integral_constant<int, 1>{}, row);
  }
}

// Two sums of an image, of a batch.
struct Sums {
  double a = 0, b = 0;
  Sums& operator+=(const Sums& other) {
    a += other.a;
    b += other.b;
    return *this;
  }
};

// Two sums over n values: short ones in float32, added up in float64. f(i, count, a, b) adds to the vectors a and b
// what belongs to the count <= kWidth values from i on, and zeros beyond them.
template <typename F>
inline Sums sum2(int64_t n, const F& f) {
  constexpr int64_t kChunk = 16 * kWidth;
  Sums total;
  for (int64_t begin = 0; begin < n; begin += kChunk) {
    const int64_t end = std::min(n, begin + kChunk);
    Vec a(0), b(0);
    for (int64_t i = begin; i < end; i += kWidth) f(i, std::min(kWidth, end - i), a, b);
    total += {sum(a), sum(b)};
  }
  return total;
}

// The first count values, the others zero.
inline Vec first(const Vec& a, int64_t count) { return count < kWidth ? Vec::set(Vec(0), a, count) : a; }

// Count, mean and sum of the squared deviations, merged as Chan, Golub and LeVeque do: a large mean cancels nothing.
struct Moments {
  double count = 0, mean = 0, squares = 0;

  static Moments of(const float* x, int64_t n) {
    const double near = sum2(n, [&](int64_t i, int64_t count, Vec& a, Vec&) { a = a + load(x + i, count); }).a / n;
    const Vec center(static_cast<float>(near));
    const Sums sums = sum2(n, [&](int64_t i, int64_t count, Vec& a, Vec& b) {
      const Vec d = first(load(x + i, count) - center, count);
      a = a + d;
      b = at::vec::fmadd(d, d, b);
    });
    return {double(n), static_cast<float>(near) + sums.a / n, sums.b - sums.a * sums.a / n};
  }

  void merge(const Moments& other) {
    const double total = count + other.count, d = other.mean - mean;
    squares += other.squares + d * d * count * other.count / total;
    mean += d * other.count / total;
    count = total;
  }
};

// A norm with its statistics known: (x - mean) scale + bias.
struct Affine {
  float mean, inverse_std, scale, bias;

  explicit Affine(const Norm& norm)
      : mean(*norm.mean),
        inverse_std(1 / std::sqrt(*norm.var + norm.eps)),
        scale((norm.weight ? *norm.weight : 1.0f) * inverse_std),
        bias(norm.bias ? *norm.bias : 0.0f) {}

  // The same whole vectors forward and backward, so that both see the same sign.
  Vec operator()(const Vec& x) const { return at::vec::fmadd(x - Vec(mean), Vec(scale), Vec(bias)); }
  void apply(const float* x, int64_t n, float* y) const {
    for (int64_t i = 0; i < n; i += kWidth) {
      const int64_t count = std::min(kWidth, n - i);
      store(y + i, (*this)(load(x + i, count)), count);
    }
  }
};

inline void write_statistics(const Norm& norm, const std::vector<Moments>& images) {
  Moments batch;
  for (const Moments& image : images) batch.merge(image);
  *norm.mean = static_cast<float>(batch.mean);
  *norm.var = static_cast<float>(batch.squares / batch.count);
}

// A norm's backward pass with its sums known: dx = scale dy - shift - slope (x - mean).
struct AffineGradient {
  float mean, scale, shift = 0, slope = 0;

  // images: sums of dy and of dy (x - mean) for each; count: values in the batch.
  AffineGradient(const Norm& norm, const std::vector<Sums>& images, double count, float* dweight, float* dbias) {
    const Affine affine(norm);
    mean = affine.mean;
    scale = affine.scale;
    Sums batch;
    for (const Sums& image : images) batch += image;
    if (dweight) *dweight = static_cast<float>(batch.b * affine.inverse_std);
    if (dbias) *dbias = static_cast<float>(batch.a);
    if (norm.training) {
      shift = static_cast<float>(scale * batch.a / count);
      slope = static_cast<float>(scale * batch.b / count * affine.inverse_std * affine.inverse_std);
    }
  }

  // From dy to dx in place.
  void apply(const float* x, int64_t n, float* gradient) const {
    for (int64_t i = 0; i < n; i += kWidth) {
      const int64_t count = std::min(kWidth, n - i);
      const Vec dy = load(gradient + i, count), deviation = load(x + i, count) - Vec(mean);
      store(gradient + i, Vec(scale) * dy - Vec(shift) - Vec(slope) * deviation, count);
    }
  }
};

// From coarse maps to fine ones and back.
class Upsampling {
 public:
  explicit Upsampling(const SpatialGate& gate) : coarse_W_(gate.coarse_W), rows_(gate.H), columns_(gate.W) {
    for (int64_t y = 0; y < gate.H; ++y) rows_[y] = (2 * y + 1) * gate.coarse_H / (2 * gate.H);
    for (int64_t x = 0; x < gate.W; ++x) columns_[x] = (2 * x + 1) * gate.coarse_W / (2 * gate.W);
  }

  void repeat(const float* coarse, float* fine) const {
    const int64_t H = rows_.size(), W = columns_.size();
    for (int64_t y = 0; y < H; ++y, fine += W) {
      if (y > 0 && rows_[y] == rows_[y - 1]) {
        for (int64_t x = 0; x < W; ++x) fine[x] = fine[x - W];
      } else {
        for (int64_t x = 0; x < W; ++x) fine[x] = coarse[rows_[y] * coarse_W_ + columns_[x]];
      }
    }
  }

  // The sum over each coarse value's copies. fine is used up: the rows that become one are added up in their first.
  void gather(float* fine, float* coarse) const {
    const int64_t H = rows_.size(), W = columns_.size();
    for (int64_t y = 0; y < H;) {
      float* row = fine + y * W;
      const int32_t coarse_y = rows_[y];
      for (++y; y < H && rows_[y] == coarse_y; ++y) {
        for (int64_t x = 0; x < W; ++x) row[x] += fine[y * W + x];
      }
      for (int64_t x = 0; x < W;) {
        const int32_t coarse_x = columns_[x];
        float total = 0;
        for (; x < W && columns_[x] == coarse_x; ++x) total += row[x];
        coarse[coarse_y * coarse_W_ + coarse_x] = total;
      }
    }
  }

 private:
  int64_t coarse_W_;
  std::vector<int32_t> rows_, columns_;
};

// (2, k, k) with each filter by columns; turned by 180 degrees for the transposed convolution.
inline std::vector<float> filters_by_columns(const SpatialGate& gate, bool turned) {
  const int64_t k = gate.kernel_size;
  std::vector<float> filters(2 * k * k);
  for (int64_t i = 0; i < 2 * k * k; ++i) {
    const int64_t row = i / k % k, column = i % k;
    filters[i / (k * k) * k * k + (turned ? (k - 1 - column) * k + k - 1 - row : column * k + row)] = gate.weight[i];
  }
  return filters;
}

// s from position and, if not null, the upsampled neighbors.
inline void weigh(
    const float* position, const Affine& norm, bool relu, const float* neighbors, int64_t n, float* s) {
  for (int64_t i = 0; i < n; i += kWidth) {
    const int64_t count = std::min(kWidth, n - i);
    Vec logits = norm(load(position + i, count));
    if (relu) logits = at::vec::clamp_min(logits, Vec(0));
    if (neighbors) logits = logits + load(neighbors + i, count);
    store(s + i, Vec(1) / (Vec(1) + logits.neg().exp()), count);
  }
}

// dlogits = ds s (1 - s), stored if not null, and dp, what act passes of it. Returns the sums of dp and dp (x - mean).
inline Sums unweigh(
    const float* ds, const float* s, const float* position, const Affine& norm, bool relu, int64_t n, float* dlogits,
    float* dp) {
  const Vec zero(0), one(1);
  return sum2(n, [&](int64_t i, int64_t count, Vec& a, Vec& b) {
    const Vec weights = load(s + i, count), x = load(position + i, count);
    Vec gradient = load(ds + i, count) * weights * (one - weights);
    if (dlogits) store(dlogits + i, gradient, count);
    // Not where p > 0: the gradient at NaN passes, as torch's.
    if (relu) gradient = Vec::blendv(gradient, zero, norm(x) <= zero);
    store(dp + i, gradient, count);
    a = a + gradient;
    b = at::vec::fmadd(gradient, x - Vec(norm.mean), b);
  });
}

// The sums of a gradient and of its products with x - mean.
inline Sums sums_of_gradient(const float* gradient, const float* x, float mean, int64_t n) {
  return sum2(n, [&](int64_t i, int64_t count, Vec& a, Vec& b) {
    const Vec values = load(gradient + i, count);
    a = a + values;
    b = at::vec::fmadd(values, load(x + i, count) - Vec(mean), b);
  });
}

// Writes position, s and, in training, the norms' statistics.
void spatial_gate(const SpatialGate& gate) {
  const int64_t H = gate.H, W = gate.W, k = gate.kernel_size, HW = gate.positions();
  const int64_t coarse_HW = gate.coarse_positions();
  const std::vector<float> filters = filters_by_columns(gate, false);
  std::vector<Moments> moments(gate.B), neighbor_moments(gate.B);
  parallel_for(0, gate.B, grain(kConvolvedPositions, HW), [&](int64_t begin, int64_t end) {
    PaddedMap mean(H, W, k / 2), max(H, W, k / 2);
    for (int64_t b = begin; b < end; ++b) {
      mean.fill(gate.mean + b * HW);
      max.fill(gate.max + b * HW);
      convolve({&mean, &max}, filters.data(), k, H, W, gate.position + b * HW);
      if (gate.norm.training) moments[b] = Moments::of(gate.position + b * HW, HW);
      if (gate.neighbors && gate.neighbor_norm.training) {
        neighbor_moments[b] = Moments::of(gate.neighbors + b * coarse_HW, coarse_HW);
      }
    }
  });
  if (gate.norm.training) write_statistics(gate.norm, moments);
  if (gate.neighbors && gate.neighbor_norm.training) write_statistics(gate.neighbor_norm, neighbor_moments);

  const Affine norm(gate.norm);
  const Upsampling upsampling(gate);
  parallel_for(0, gate.B, grain(kWeighedPositions, HW), [&](int64_t begin, int64_t end) {
    std::vector<float> coarse(coarse_HW), fine(gate.neighbors ? HW : 0);
    for (int64_t b = begin; b < end; ++b) {
      if (gate.neighbors) {
        Affine(gate.neighbor_norm).apply(gate.neighbors + b * coarse_HW, coarse_HW, coarse.data());
        upsampling.repeat(coarse.data(), fine.data());
      }
      weigh(gate.position + b * HW, norm, gate.relu, gate.neighbors ? fine.data() : nullptr, HW, gate.s + b * HW);
    }
  });
}

// The backward pass down to the norms: dmean = dp and dneighbors = du, and the sums that the norms need of each image.
inline void weights_gradient(
    const SpatialGate& gate, const SpatialGateGradients& gradients, std::vector<Sums>& sums,
    std::vector<Sums>& neighbor_sums) {
  const int64_t HW = gate.positions(), coarse_HW = gate.coarse_positions();
  const Affine norm(gate.norm);
  const Upsampling upsampling(gate);
  parallel_for(0, gate.B, grain(kWeighedPositions, HW), [&](int64_t begin, int64_t end) {
    std::vector<float> dlogits(gate.neighbors ? HW : 0);
    for (int64_t b = begin; b < end; ++b) {
      const int64_t image = b * HW, coarse = b * coarse_HW;
      sums[b] = unweigh(
          gradients.ds + image, gate.s + image, gate.position + image, norm, gate.relu, HW,
          gate.neighbors ? dlogits.data() : nullptr, gradients.dmean + image);
      if (gate.neighbors) {
        upsampling.gather(dlogits.data(), gradients.dneighbors + coarse);
        neighbor_sums[b] = sums_of_gradient(
            gradients.dneighbors + coarse, gate.neighbors + coarse, *gate.neighbor_norm.mean, coarse_HW);
      }
    }
  });
}

// The rest of one image: dmean and dmax from dp, which dmean holds, and what it adds to the filters' gradient.
class ConvolutionGradient {
 public:
  ConvolutionGradient(const SpatialGate& gate, const SpatialGateGradients& gradients, const AffineGradient& norm)
      : gate_(gate),
        gradients_(gradients),
        norm_(norm),
        dposition_(gate.H, gate.W, gate.kernel_size / 2),
        q_(gate.H, gate.W, gate.kernel_size / 2) {}

  void image(int64_t b, const float* filters, float* filter_gradient) {
    const int64_t H = gate_.H, W = gate_.W, k = gate_.kernel_size, offset = b * H * W;
    norm_.apply(gate_.position + offset, H * W, gradients_.dmean + offset);
    dposition_.fill(gradients_.dmean + offset);
    convolve({&dposition_}, filters, k, H, W, gradients_.dmean + offset);
    convolve({&dposition_}, filters + k * k, k, H, W, gradients_.dmax + offset);
    if (!gradients_.dweight) return;
    q_.fill(gate_.mean + offset);
    add_filter_gradient(q_, dposition_, H, W, k, filter_gradient);
    q_.fill(gate_.max + offset);
    add_filter_gradient(q_, dposition_, H, W, k, filter_gradient + k * k * kWidth);
  }

 private:
  const SpatialGate& gate_;
  const SpatialGateGradients& gradients_;
  const AffineGradient norm_;
  PaddedMap dposition_, q_;
};

// The groups' gradients, (groups, 2, k, k) by columns, added up in float64.
inline void write_filter_gradient(const std::vector<float>& partial, int64_t groups, int64_t k, float* dweight) {
  for (int64_t i = 0; i < 2 * k * k; ++i) {
    const int64_t row = i / k % k, column = i % k;
    double total = 0;
    for (int64_t g = 0; g < groups; ++g) total += partial[(g * 2 + i / (k * k)) * k * k + column * k + row];
    dweight[i] = static_cast<float>(total);
  }
}

// Writes all gradients, from what the forward pass took and wrote.
void spatial_gate_backward(const SpatialGate& gate, const SpatialGateGradients& gradients) {
  const int64_t B = gate.B, HW = gate.positions(), coarse_HW = gate.coarse_positions(), k = gate.kernel_size;
  std::vector<Sums> sums(B), neighbor_sums(B);
  weights_gradient(gate, gradients, sums, neighbor_sums);

  const AffineGradient norm(gate.norm, sums, B * HW, gradients.dnorm_weight, gradients.dnorm_bias);
  // Zero without neighbors: those of an empty batch may be null as well.
  for (float* gradient : {gradients.dneighbor_norm_weight, gradients.dneighbor_norm_bias}) {
    if (gradient) *gradient = 0;
  }
  if (gate.neighbors) {
    AffineGradient(gate.neighbor_norm, neighbor_sums, B * coarse_HW, gradients.dneighbor_norm_weight,
                   gradients.dneighbor_norm_bias)
        .apply(gate.neighbors, B * coarse_HW, gradients.dneighbors);
  }
  const std::vector<float> filters = filters_by_columns(gate, true);
  // A group's images share vectors of partial sums, whose elements are added up once: for small maps that is much of
  // the work. The groups depend on B alone, as the results must not depend on the number of threads.
  const int64_t group = (B + kGroups - 1) / kGroups, groups = group ? (B + group - 1) / group : 0;
  std::vector<float> partial(groups * 2 * k * k);
  parallel_for(0, groups, grain(kConvolvedPositions, group * HW), [&](int64_t begin, int64_t end) {
    ConvolutionGradient convolution(gate, gradients, norm);
    for (int64_t i = begin; i < end; ++i) {
      std::vector<float> vectors(2 * k * k * kWidth);
      for (int64_t b = i * group; b < std::min(B, (i + 1) * group); ++b) {
        convolution.image(b, filters.data(), vectors.data());
      }
      for (int64_t j = 0; j < 2 * k * k; ++j) partial[i * 2 * k * k + j] = sum(load(&vectors[j * kWidth]));
    }
  });
  if (gradients.dweight) write_filter_gradient(partial, groups, k, gradients.dweight);
}

}  // namespace csham::CPU_CAPABILITY

#else
#include "operator.h"

namespace csham {
namespace {

SpatialGate gate_of(Operands& small, const Tensor& mean, const Tensor& max, const Optional& neighbors, const Tensor& weight, bool relu,
                    const Norm& norm, const Norm& neighbor_norm) {
  const Sizes n(mean);
  const int64_t k = weight.size(3);
  SpatialGate gate{};
  gate.B = n.B, gate.H = n.H, gate.W = n.W, gate.kernel_size = k, gate.coarse_H = n.h, gate.coarse_W = n.w;
  gate.mean = small(mean, n.positions()), gate.max = small(max, n.positions());
  gate.neighbors = small(neighbors, n.neighbors()), gate.weight = small(weight, 2 * k * k);
  gate.norm = norm, gate.neighbor_norm = neighbor_norm, gate.relu = relu;
  return gate;
}

// The statistics are written in training only, and then to arrays of our own.
Norm norm_of(Operands& small, const Optional& weight, const Optional& bias, const Tensor& mean, const Tensor& var, bool training,
             double eps) {
  return {small(weight, 1), small(bias, 1), eps, training, const_cast<float*>(small(mean, 1)),
          const_cast<float*>(small(var, 1))};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> spatial_gate(
    const Tensor& mean, const Tensor& max, const Optional& neighbors, const Tensor& weight, const Optional& norm_weight,
    const Optional& norm_bias, const Optional& norm_mean, const Optional& norm_var,
    const Optional& neighbor_norm_weight, const Optional& neighbor_norm_bias, const Optional& neighbor_norm_mean,
    const Optional& neighbor_norm_var, bool training, bool neighbor_training, double eps, double neighbor_eps,
    bool relu) {
  Operands small;
  Tensor s = empty(mean.sizes()), position = empty(mean.sizes());
  // Zero where an empty batch or a missing term leaves nothing to be written.
  Tensor m = zeros(1), v = zeros(1), nm = zeros(1), nv = zeros(1);
  const Norm norm = training ? norm_of(small, norm_weight, norm_bias, m, v, true, eps)
                             : norm_of(small, norm_weight, norm_bias, norm_mean.value(), norm_var.value(), false, eps);
  const Norm neighbor_norm =
      neighbor_training || !neighbors
          ? norm_of(small, neighbor_norm_weight, neighbor_norm_bias, nm, nv, neighbor_training, neighbor_eps)
          : norm_of(small, neighbor_norm_weight, neighbor_norm_bias, neighbor_norm_mean.value(), neighbor_norm_var.value(),
                    false, neighbor_eps);
  SpatialGate gate = gate_of(small, mean, max, neighbors, weight, relu, norm, neighbor_norm);
  gate.position = floats(position);
  gate.s = floats(s);
  CSHAM_BEST(spatial_gate)(gate);
  return {std::move(s), std::move(position), std::move(m), std::move(v), std::move(nm), std::move(nv)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> spatial_gate_backward(
    const Tensor& ds, const Tensor& s, const Tensor& position, const Tensor& mean, const Tensor& max,
    const Optional& neighbors, const Tensor& weight, const Optional& norm_weight, const Optional& norm_bias,
    const Optional& norm_mean, const Optional& norm_var, const Optional& neighbor_norm_weight,
    const Optional& neighbor_norm_bias, const Optional& neighbor_norm_mean, const Optional& neighbor_norm_var,
    bool training, bool neighbor_training, double eps, double neighbor_eps, bool relu) {
  Operands small;
  const Sizes n(mean);
  const Tensor none_used = zeros(1);
  SpatialGate gate = gate_of(
      small, mean, max, neighbors, weight, relu,
      norm_of(small, norm_weight, norm_bias, norm_mean.value(), norm_var.value(), training, eps),
      norm_of(small, neighbor_norm_weight, neighbor_norm_bias, neighbors ? neighbor_norm_mean.value() : none_used,
              neighbors ? neighbor_norm_var.value() : none_used, neighbor_training, neighbor_eps));
  gate.position = const_cast<float*>(small(position, n.positions()));
  gate.s = const_cast<float*>(small(s, n.positions()));
  Tensor dmean = empty(mean.sizes()), dmax = empty(mean.sizes()), dweight = empty(weight.sizes());
  Tensor dneighbors = neighbors ? empty(neighbors->sizes()) : none(), dnorms = zeros(4);
  float* norms = floats(dnorms);
  CSHAM_BEST(spatial_gate_backward)(gate, {small(ds, n.positions()), floats(dmean), floats(dmax), floats(dweight),
                                         floats(dneighbors), norms, norms + 1, norms + 2, norms + 3});
  return {std::move(dmean), std::move(dmax), std::move(dneighbors), std::move(dweight), std::move(dnorms)};
}

CSHAM_OPERATOR(spatial_gate);
CSHAM_OPERATOR(spatial_gate_backward);

}  // namespace
}  // namespace csham
#endif
