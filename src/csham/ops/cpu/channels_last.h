// The kernels of sample.h for maps in NHWC order, x[p * C + c]: a value per channel is contiguous, one per position is not.
//
// filters and their gradient are (3, 3, C) here, and the range c0 .. c1 is always all channels. Four positions are taken
// at once, so that an array with a value per channel is read once for four reads of x: a square of 2 x 2 where the
// neighbour term pools one, consecutive positions elsewhere. Sums over positions then stay in L1 and sums over channels
// in registers.
#pragma once

#include "blocks.h"
#include "sample.h"

#include <array>
#include <cmath>
#include <limits>
#include <numeric>

namespace csham {
namespace CPU_CAPABILITY {
namespace pixels {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

template <int N>
using Positions = std::array<int64_t, N>;

template <typename F>
void for_positions(int64_t p, int64_t end, F&& f) {
  for (; p + 4 <= end; p += 4) f(Positions<4>{p, p + 1, p + 2, p + 3});
  for (; p < end; ++p) f(Positions<1>{p});
}

// cell(i, j, positions) for the squares that are pooled, rest(positions) for what an odd side leaves over.
template <typename Cell, typename Rest>
void for_cells(const Size& size, Cell&& cell, Rest&& rest) {
  const int64_t W = size.W;
  for (int64_t i = 0; i < size.pooled_H(); ++i) {
    const int64_t row = 2 * i * W;
    for (int64_t j = 0; j < size.pooled_W(); ++j) {
      const int64_t p = row + 2 * j;
      cell(i, j, Positions<4>{p, p + 1, p + W, p + W + 1});
    }
    if (W % 2) rest(Positions<2>{row + W - 1, row + 2 * W - 1});
  }
  for_positions(2 * size.pooled_H() * W, size.positions(), rest);
}

// The values of a positions' array at some positions, each in all lanes.
template <int N>
struct Broadcast {
  Vec values[N];
  Broadcast(const float* array, const Positions<N>& positions) {
    for (int n = 0; n < N; ++n) values[n] = Vec(array[positions[n]]);
  }
  const Vec& operator[](int n) const { return values[n]; }
};

// Which filter taps read a pooled cell, and for which outputs: one or two on either axis.
struct Taps {
  int64_t count = 0;
  int64_t tap[4], output[4];

  Taps(const Size& size, int64_t i, int64_t j) {
    int64_t ki[2], oi[2], kj[2], oj[2];
    const int64_t rows = along(i, size.pooled_H(), size.coarse_H(), ki, oi);
    const int64_t columns = along(j, size.pooled_W(), size.coarse_W(), kj, oj);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < columns; ++c, ++count) {
        tap[count] = ki[r] * 3 + kj[c];
        output[count] = oi[r] * size.coarse_W() + oj[c];
      }
    }
  }

 private:
  static int64_t along(int64_t i, int64_t pooled, int64_t coarse, int64_t* k, int64_t* o) {
    const int64_t padded_i = i + pooled % 2;
    if (padded_i % 2) {
      k[0] = 1, o[0] = padded_i / 2;
      return 1;
    }
    int64_t count = 0;
    if (padded_i / 2 < coarse) k[count] = 0, o[count++] = padded_i / 2;
    if (padded_i >= 2) k[count] = 2, o[count++] = padded_i / 2 - 1;
    return count;
  }
};

// f with the number of taps as a compile-time constant.
template <typename F>
void with_count(int64_t taps, F&& f) {
  if (taps == 1) return f(std::integral_constant<int, 1>());
  if (taps == 2) return f(std::integral_constant<int, 2>());
  return f(std::integral_constant<int, 4>());
}

template <typename F>
void with_bool(bool value, F&& f) {
  if (value) return f(std::true_type());
  return f(std::false_type());
}

// The neighbour term's forward pass: three rows of pooled cells, of which the convolution reads all taps of an output.
class PooledRows {
 public:
  // One block more than the channels, so that cells do not all fall into the same few sets of the L1 cache.
  static int64_t stride(const Size& size) { return padded(size.C) + kBlock; }
  static int64_t floats(const Size& size) { return 3 * (size.pooled_W() + 2) * stride(size); }

  // A column of zeros stands before the cells and another behind them.
  PooledRows(const Size& size, float* memory) : size_(size), stride_(stride(size)), memory_(memory) {
    for (int64_t i = 0; i < 3; ++i) {
      std::fill_n(cell(i, -1), stride_, 0.f);
      std::fill_n(cell(i, size.pooled_W()), stride_, 0.f);
    }
  }

  float* cell(int64_t i, int64_t j) const { return memory_ + ((i % 3) * (size_.pooled_W() + 2) + j + 1) * stride_; }

  // After row i of cells: the outputs that needed no more than that.
  void convolve_after(int64_t i, const float* const* filters, float* neighbors) const {
    const int64_t end = i + size_.pooled_H() % 2;
    if (end >= 2 && end % 2 == 0) convolve(end / 2 - 1, filters, neighbors);
    if (i + 1 == size_.pooled_H()) convolve(size_.coarse_H() - 1, filters, neighbors);
  }

 private:
  void convolve(int64_t oi, const float* const* filters, float* neighbors) const {
    const int64_t coarse_W = size_.coarse_W();
    for (int64_t oj = 0; oj < coarse_W; oj += 4) {
      float outputs[4];
      convolve4(oi, oj, filters, outputs);
      for (int64_t n = 0; n < std::min<int64_t>(4, coarse_W - oj); ++n) neighbors[oi * coarse_W + oj + n] = outputs[n] / 4;
    }
  }

  // Four outputs in a row, the last of them repeated where there are fewer.
  void convolve4(int64_t oi, int64_t oj, const float* const* filters, float* outputs) const {
    const int64_t top = 2 * oi - size_.pooled_H() % 2, left = size_.pooled_W() % 2;
    const int64_t first = std::max<int64_t>(0, -top), end = std::min<int64_t>(3, size_.pooled_H() - top);
    Pair total[4] = {Pair(0.f), Pair(0.f), Pair(0.f), Pair(0.f)};
    int64_t offset[4];
    for (int64_t n = 0; n < 4; ++n) offset[n] = 2 * (std::min(oj + n, size_.coarse_W() - 1) - oj) * stride_;
    for (int64_t ki = first; ki < end; ++ki) {
      for (int64_t kj = 0; kj < 3; ++kj) {
        const float* cells = cell(top + ki, 2 * oj - left + kj);
        const float* filter = filters[ki * 3 + kj];
        for (int64_t c = 0; c < size_.C; c += kBlock) {
          const Pair f = load_block(filter + c);
#pragma GCC unroll 4
          for (int n = 0; n < 4; ++n) total[n] = fmadd(f, load_block(static_cast<const float*>(cells + offset[n] + c)), total[n]);
        }
      }
    }
    const Vec totals[4] = {total[0].a + total[0].b, total[1].a + total[1].b, total[2].a + total[2].b,
                           total[3].a + total[3].b};
    sums(totals, outputs);
  }

  Size size_;
  int64_t stride_;
  float* memory_;
};

template <typename T>
struct ChannelsLast {
  // As many positions as fill whole blocks are taken for one position with more channels, whose sums are added up at the
  // end: no block has a tail, and few channels make enough independent sums.
  static void channel_statistics(const T* x, Size size, int64_t /*c0*/, int64_t /*c1*/, float* mean, float* max) {
    const int64_t C = size.C, positions = size.positions();
    int64_t fold = kBlock / std::gcd(C, kBlock);
    fold *= std::max<int64_t>(1, 8 * kBlock / (fold * C));
    const int64_t width = fold * C, rows = positions / fold;
    Scratch scratch(4 * width);
    float* sum = scratch.take(width);
    float* largest = scratch.take(width);
    std::fill_n(sum, width, 0.f);
    std::fill_n(largest, width, -kInfinity);
    int64_t row = 0;
    for (; row + 8 <= rows; row += 8) add_rows<8>(x + row * width, width, sum, largest);
    for (; row < rows; ++row) add_rows<1>(x + row * width, width, sum, largest);
    float* sum_in_order = scratch.take(width);
    float* largest_in_order = scratch.take(width);
    from_lanes<T>(sum, width, sum_in_order);
    from_lanes<T>(largest, width, largest_in_order);
    fold_rows(sum_in_order, largest_in_order, C, std::min(fold, positions), x + rows * width, positions - rows * fold);
    for (int64_t c = 0; c < C; ++c) mean[c] = sum_in_order[c] / static_cast<float>(positions);
    if (max) std::copy_n(largest_in_order, C, max);
  }

  static void position_statistics(const T* x, Size size, const float* wp, const float* filters, int64_t /*c0*/,
                                  int64_t /*c1*/, float* mean, float* max, float* neighbors) {
    Scratch scratch(10 * padded(size.C) + PooledRows::floats(size));
    const Rows<T> rows(x, size.C, size.positions());
    const float* weights = to_lanes<T>(wp, size.C, 1.f, 0.f, scratch);
    const auto plain = [&](const auto& positions) {
      reduce_channels<false>(rows, size.C, weights, positions, nullptr, mean, max);
    };
    if (!filters) return for_positions(0, size.positions(), plain);
    const float* taps[9];
    for (int64_t k = 0; k < 9; ++k) taps[k] = to_lanes<T>(filters + k * size.C, size.C, 0.f, 0.f, scratch);
    const PooledRows pooled(size, scratch.take(PooledRows::floats(size)));
    const auto pool = [&](int64_t i, int64_t j, const Positions<4>& positions) {
      reduce_channels<true>(rows, size.C, weights, positions, pooled.cell(i, j), mean, max);
      if (j + 1 == size.pooled_W()) pooled.convolve_after(i, taps, neighbors);
    };
    for_cells(size, pool, plain);
  }

  static void scale(const T* x, Size size, const float* w, const float* s, const T* shortcut, bool relu, T* y,
                    bool stream) {
    const int64_t C = size.C;
    Scratch scratch(5 * padded(C));
    const float* weights = to_lanes<T>(w, C, 1.f, 0.f, scratch);
    const Rows<T> x_rows(x, C, size.positions()), shortcut_rows(shortcut ? shortcut : x, C, size.positions());
    const OutputRows<T> y_rows(y, C, stream, scratch);
    with_bool(shortcut != nullptr, [&](auto add) {
      with_bool(relu, [&](auto clamp) {
        for_positions(0, size.positions(), [&](const auto& group) {
          scale_rows<decltype(add)::value, decltype(clamp)::value>(x_rows, C, weights, s, shortcut_rows, y_rows, group);
        });
      });
    });
    if (stream) finish_streams();
  }

  static void scale_backward(const T* dy, const T* x, Size size, const float* w, const float* s, const float* wp,
                             const float* position_max, const T* y, T* dz, float* dw, float* ds, float* ties) {
    const int64_t C = size.C, positions = size.positions();
    Scratch scratch(7 * padded(C) + 2 * positions);
    const float* ones = nullptr;
    if (!s) {
      float* values = scratch.take(positions);
      std::fill_n(values, positions, 1.f);
      ones = values;
    }
    ScaleBackward k{Rows<T>(dy, C, positions),
                    Rows<T>(x, C, positions),
                    Rows<T>(y ? y : x, C, positions),
                    C,
                    to_lanes<T>(w, C, 1.f, 0.f, scratch),
                    to_lanes<T>(wp, C, 1.f, kNaN, scratch),
                    s ? s : ones,
                    position_max,
                    tail_mask<T>(C),
                    scratch.take(padded(C)),
                    ds ? ds : scratch.take(positions),
                    ties};
    std::fill_n(k.dw, padded(C), 0.f);
    const OutputRows<T> dz_rows(dz, C, false, scratch);
    with_bool(y != nullptr, [&](auto relu) {
      with_bool(ties != nullptr, [&](auto count) {
        for_positions(0, positions, [&](const auto& group) { k.template add<decltype(relu)::value, decltype(count)::value>(group, dz_rows); });
      });
    });
    if (dw) from_lanes<T>(k.dw, C, dw);
  }

  static void statistics_gradient(const T* x, Size size, const float* wp, const float* dmean, const float* dmax,
                                  const float* position_max, const float* dneighbors, const float* filters,
                                  const float* channel_max, float* dwp, float* dfilters, float* ties) {
    const int64_t C = size.C, positions = size.positions(), width = padded(C);
    const bool spatial = position_max && (dwp || dfilters);
    const bool neighbors = spatial && filters && dneighbors;
    Scratch scratch(24 * width + 2 * positions);
    StatisticsGradient k{Rows<T>(x, C, positions),
                         C,
                         to_lanes<T>(wp, C, 1.f, kNaN, scratch),
                         to_lanes<T>(channel_max, C, kNaN, kNaN, scratch),
                         SpatialGradient(dmean, dmax, position_max, positions, spatial, scratch),
                         dneighbors,
                         scratch.take(width),
                         scratch.take(width),
                         neighbors ? scratch.take(9 * width) : nullptr};
    std::fill_n(k.dwp, width, 0.f);
    std::fill_n(k.ties, width, 0.f);
    if (neighbors) std::fill_n(k.dfilters, 9 * width, 0.f);
    with_bool(ties != nullptr, [&](auto count) {
      if (!spatial) {
        if (count) for_positions(0, positions, [&](const auto& group) { k.template add<0, false, decltype(count)::value>(group, nullptr); });
        return;
      }
      const auto plain = [&](const auto& group) { k.template add<0, true, decltype(count)::value>(group, nullptr); };
      if (!neighbors) return for_positions(0, positions, plain);
      const auto cell = [&](int64_t i, int64_t j, const Positions<4>& group) {
        const Taps taps(size, i, j);
        with_count(taps.count, [&](auto n) { k.template add<decltype(n)::value, true, decltype(count)::value>(group, &taps); });
      };
      for_cells(size, cell, plain);
    });
    if (neighbors) finish_filters(k, size, filters, wp, dfilters, scratch);
    if (dwp) from_lanes<T>(k.dwp, C, dwp);
    if (ties) from_lanes<T>(k.ties, C, ties);
  }

  static void input_gradient(const T* dz, const T* x, Size size, const float* w, const float* s, const float* wp,
                             const float* dmean, const float* dmax, const float* position_max, const float* dneighbors,
                             const float* filters, const float* dchannel_mean, const float* dchannel_max,
                             const float* channel_max, T* dx, bool stream) {
    const int64_t C = size.C, positions = size.positions(), width = padded(C);
    const bool spatial = position_max != nullptr;
    const bool neighbors = spatial && filters && dneighbors;
    Scratch scratch(19 * width + 3 * positions);
    float* ones = nullptr;
    if (!s) {
      ones = scratch.take(positions);
      std::fill_n(ones, positions, 1.f);
    }
    // Without dz its rows are all the same row of zeros.
    T* zeros = reinterpret_cast<T*>(scratch.take(width));
    std::fill_n(zeros, width, T(0.f));
    InputGradient k{Rows<T>(dz ? dz : zeros, dz ? C : width, dz ? positions : 1),
                    Rows<T>(x, C, positions),
                    dz ? 1 : 0,
                    C,
                    to_lanes<T>(w, C, 1.f, 0.f, scratch),
                    to_lanes<T>(wp, C, 1.f, 0.f, scratch),
                    to_lanes<T>(dchannel_mean, C, 0.f, 0.f, scratch),
                    to_lanes<T>(dchannel_max, C, 0.f, 0.f, scratch),
                    to_lanes<T>(channel_max, C, kNaN, kNaN, scratch),
                    s ? s : ones,
                    SpatialGradient(dmean, dmax, position_max, positions, spatial, scratch),
                    dneighbors,
                    {}};
    for (int64_t tap = 0; neighbors && tap < 9; ++tap) {
      k.filters[tap] = to_lanes<T>(filters + tap * C, C, 0.f, 0.f, scratch);
    }
    const OutputRows<T> dx_rows(dx, C, stream, scratch);
    with_bool(channel_max && dchannel_max, [&](auto maximum) {
      if (!spatial) {
        const auto plain = [&](const auto& group) { k.template write<0, false, decltype(maximum)::value>(group, nullptr, dx_rows); };
        return for_positions(0, positions, plain);
      }
      const auto plain = [&](const auto& group) { k.template write<0, true, decltype(maximum)::value>(group, nullptr, dx_rows); };
      if (!neighbors) return for_positions(0, positions, plain);
      const auto cell = [&](int64_t i, int64_t j, const Positions<4>& group) {
        const Taps taps(size, i, j);
        with_count(taps.count, [&](auto n) { k.template write<decltype(n)::value, true, decltype(maximum)::value>(group, &taps, dx_rows); });
      };
      for_cells(size, cell, plain);
    });
    if (stream) finish_streams();
  }

 private:
  // While the block at channel c of four positions is read, asks for as much memory, kAhead bytes further on.
  template <bool kCell, size_t N>
  __attribute__((always_inline)) static void prefetch_ahead(const T* const (&x)[N], int64_t c) {
    constexpr int64_t kAhead = 4096, kBytes = kBlock * sizeof(T);
    if constexpr (N == 4 && kCell) {
      prefetch<2 * kBytes>(reinterpret_cast<const char*>(x[0] + 2 * c) + kAhead);
      prefetch<2 * kBytes>(reinterpret_cast<const char*>(x[2] + 2 * c) + kAhead);
    } else if constexpr (N == 4) {
      prefetch<4 * kBytes>(reinterpret_cast<const char*>(x[0] + 4 * c) + kAhead);
    }
  }

  // Adds N rows to the sums and maxima of their columns.
  template <int N>
  static void add_rows(const T* x, int64_t width, float* sum, float* largest) {
    for (int64_t c = 0; c < width; c += kBlock) {
      prefetch<N * kBlock * sizeof(T)>(x + N * (width + c));
      Pair total = load_block(x + c), most = total;
#pragma GCC unroll 8
      for (int n = 1; n < N; ++n) {
        const Pair value = load_block(x + n * width + c);
        total = total + value;
        most = larger(most, value);
      }
      store_block(sum + c, load_block(static_cast<const float*>(sum + c)) + total);
      store_block(largest + c, larger(load_block(static_cast<const float*>(largest + c)), most));
    }
  }

  // Joins the statistics of `fold` positions, and `count` more positions of x, in those of the first.
  static void fold_rows(float* sum, float* largest, int64_t C, int64_t fold, const T* x, int64_t count) {
    for (int64_t i = 1; i < fold; ++i) {
      for (int64_t c = 0; c < C; ++c) {
        sum[c] += sum[i * C + c];
        largest[c] = std::max(largest[c], largest[i * C + c]);
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t c = 0; c < C; ++c) {
        const float value = static_cast<float>(x[i * C + c]);
        sum[c] += value;
        largest[c] = std::max(largest[c], value);
      }
    }
  }

  template <bool kShortcut, bool kRelu, size_t N>
  static void scale_rows(const Rows<T>& x_rows, int64_t C, const float* weights, const float* s,
                         const Rows<T>& shortcut_rows, const OutputRows<T>& y_rows,
                         const std::array<int64_t, N>& positions) {
    const T *x[N], *shortcut[N];
    T* y[N];
    Vec weight[N];
    for (size_t n = 0; n < N; ++n) {
      x[n] = x_rows(positions[n]);
      shortcut[n] = shortcut_rows(positions[n]);
      y[n] = y_rows.row(n, positions[n]);
      weight[n] = Vec(s ? s[positions[n]] : 1.f);
    }
    for (int64_t c = 0; c < C; c += kBlock) {
      prefetch_ahead<false>(x, c);
      if constexpr (kShortcut) prefetch_ahead<false>(shortcut, c);
      const Pair weight_c = load_block(weights + c);
#pragma GCC unroll 4
      for (size_t n = 0; n < N; ++n) {
        const Pair factor = weight_c * weight[n], x_c = load_block(x[n] + c);
        Pair value = kShortcut ? fmadd(factor, x_c, load_block(shortcut[n] + c)) : factor * x_c;
        if constexpr (kRelu) value = larger(value, Pair(0.f));
        store_block(y[n] + c, value);
      }
    }
    y_rows.finish(positions);
  }

  // The mean and maximum over channels at N positions and, for a cell of four, the sum of the four.
  template <bool kPool, size_t N>
  static void reduce_channels(const Rows<T>& rows, int64_t C, const float* weights,
                              const std::array<int64_t, N>& positions, float* cell, float* mean, float* max) {
    const T* x[N];
    Vec total[N], most[N];
    for (size_t n = 0; n < N; ++n) {
      x[n] = rows(positions[n]);
      total[n] = Vec(0.f);
      most[n] = Vec(-kInfinity);
    }
    const auto block = [&](int64_t c, auto tail, const Pair& mask) __attribute__((always_inline)) {
      prefetch_ahead<kPool>(x, c);
      const Pair weight = load_block(weights + c);
      Pair pooled(0.f);
#pragma GCC unroll 4
      for (size_t n = 0; n < N; ++n) {
        Pair t = weight * load_block(x[n] + c);
        Pair candidate = t;
        if constexpr (tail) {
          t = t & mask;
          candidate = select(mask, t, Pair(-kInfinity));
        }
        if constexpr (kPool) pooled = n == 0 ? t : pooled + t;
        total[n] = total[n] + t.a + t.b;
        most[n] = larger(larger(candidate.a, candidate.b), most[n]);
      }
      if constexpr (kPool) store_block(cell + c, pooled);
    };
    int64_t c = 0;
    for (; c + kBlock <= C; c += kBlock) block(c, std::false_type(), Pair());
    if (c < C) block(c, std::true_type(), tail_mask<T>(C));
    float totals[N], maxima_[N];
    sums(total, totals);
    maxima(most, maxima_);
    const float share = 1.f / static_cast<float>(C);
    for (size_t n = 0; n < N; ++n) {
      mean[positions[n]] = totals[n] * share;
      max[positions[n]] = maxima_[n];
    }
  }

  struct ScaleBackward {
    Rows<T> dy_rows, x_rows, y_rows;
    int64_t C;
    const float *w, *wp, *s, *position_max;
    Pair mask;
    float *dw, *ds, *ties;

    template <bool kRelu, bool kTies, size_t N>
    void add(const std::array<int64_t, N>& positions, const OutputRows<T>& dz_rows) const {
      // Copies, which a store to memory cannot change in the compiler's eyes.
      const float *const w = this->w, *const wp = this->wp;
      float* const dw = this->dw;
      const int64_t C = this->C;
      const T *dy[N], *x[N], *y[N];
      T* dz[N];
      Vec scale[N], most[N], total[N], equal[N];
      for (size_t n = 0; n < N; ++n) {
        dy[n] = dy_rows(positions[n]);
        x[n] = x_rows(positions[n]);
        if constexpr (kRelu) y[n] = y_rows(positions[n]), dz[n] = dz_rows.row(n, positions[n]);
        scale[n] = Vec(s[positions[n]]);
        if constexpr (kTies) most[n] = Vec(position_max[positions[n]]);
        total[n] = equal[n] = Vec(0.f);
      }
      const auto block = [&](int64_t c, auto tail) __attribute__((always_inline)) {
        prefetch_ahead<false>(dy, c);
        prefetch_ahead<false>(x, c);
        const Pair w_c = load_block(w + c), wp_c = load_block(wp + c);
        Pair dw_c(0.f);
#pragma GCC unroll 4
        for (size_t n = 0; n < N; ++n) {
          Pair gradient = load_block(dy[n] + c);
          if constexpr (kRelu) {
            gradient = where_positive(load_block(y[n] + c), gradient);
            store_block(dz[n] + c, gradient);
          }
          const Pair x_c = load_block(x[n] + c);
          Pair product = gradient * x_c;
          if constexpr (tail) product = product & mask;
          dw_c = n == 0 ? product * scale[n] : fmadd(product, scale[n], dw_c);
          total[n] = at::vec::fmadd(product.b, w_c.b, at::vec::fmadd(product.a, w_c.a, total[n]));
          if constexpr (kTies) {
            const Pair t = wp_c * x_c;
            equal[n] = add_where_equal(add_where_equal(equal[n], t.a, most[n], Vec(1.f)), t.b, most[n], Vec(1.f));
          }
        }
        store_block(dw + c, load_block(static_cast<const float*>(dw + c)) + dw_c);
      };
      int64_t c = 0;
      for (; c + kBlock <= C; c += kBlock) block(c, std::false_type());
      if (c < C) block(c, std::true_type());
      if constexpr (kRelu) dz_rows.finish(positions);
      float values[N];
      sums(total, values);
      for (size_t n = 0; n < N; ++n) ds[positions[n]] = values[n];
      if constexpr (kTies) {
        sums(equal, values);
        for (size_t n = 0; n < N; ++n) ties[positions[n]] = values[n];
      }
    }
  };

  // What the positions' mean and maximum give to the gradient of t: `other`, or `most` where t is the maximum.
  struct SpatialGradient {
    const float *maximum, *other, *most;

    SpatialGradient(const float* dmean, const float* dmax, const float* position_max, int64_t positions, bool wanted,
                    Scratch& scratch)
        : maximum(position_max), other(dmean), most(nullptr) {
      if (!wanted) return;
      if (!dmean) {
        float* zeros = scratch.take(positions);
        std::fill_n(zeros, positions, 0.f);
        other = zeros;
      }
      float* total = scratch.take(positions);
      for (int64_t p = 0; p < positions; ++p) total[p] = other[p] + (dmax ? dmax[p] : 0.f);
      most = total;
    }
  };

  struct StatisticsGradient {
    Rows<T> rows;
    int64_t C;
    const float *wp, *channel_max;
    SpatialGradient gradient;
    const float* dneighbors;
    float *dwp, *ties, *dfilters;  // dfilters: of the sum over a cell of x, that is, without wp / 4

    template <int kTaps, bool kSpatial, bool kTies, size_t N>
    void add(const std::array<int64_t, N>& positions, const Taps* taps) const {
      const float *const wp = this->wp, *const channel_max = this->channel_max;
      float *const dwp = this->dwp, *const ties = this->ties;
      const int64_t C = this->C;
      const T* x[N];
      Vec maximum[N], other[N], most[N], outer[kTaps + 1];
      float* filter[kTaps + 1];
      for (size_t n = 0; n < N; ++n) {
        x[n] = rows(positions[n]);
        if constexpr (kSpatial) {
          maximum[n] = Vec(gradient.maximum[positions[n]]);
          other[n] = Vec(gradient.other[positions[n]]);
          most[n] = Vec(gradient.most[positions[n]]);
        }
      }
      for (int k = 0; k < kTaps; ++k) {
        outer[k] = Vec(dneighbors[taps->output[k]]);
        filter[k] = dfilters + taps->tap[k] * padded(C);
      }
      for (int64_t c = 0; c < C; c += kBlock) {
        prefetch_ahead<(kTaps > 0)>(x, c);
        const Pair wp_c = load_block(wp + c), channel_max_c = load_block(channel_max + c);
        Pair dwp_c(0.f), cell(0.f), equal(0.f);
#pragma GCC unroll 4
        for (size_t n = 0; n < N; ++n) {
          const Pair x_c = load_block(x[n] + c);
          if constexpr (kSpatial) {
            const Pair dt = select_equal(wp_c * x_c, maximum[n], most[n], other[n]);
            dwp_c = n == 0 ? dt * x_c : fmadd(dt, x_c, dwp_c);
          }
          if constexpr (kTaps > 0) cell = n == 0 ? x_c : cell + x_c;
          if constexpr (kTies) equal = add_where_equal(equal, x_c, channel_max_c, Pair(1.f));
        }
        if constexpr (kSpatial) store_block(dwp + c, load_block(static_cast<const float*>(dwp + c)) + dwp_c);
        if constexpr (kTies) store_block(ties + c, load_block(static_cast<const float*>(ties + c)) + equal);
#pragma GCC unroll 4
        for (int k = 0; k < kTaps; ++k) {
          store_block(filter[k] + c, fmadd(cell, outer[k], load_block(static_cast<const float*>(filter[k] + c))));
        }
      }
    }
  };

  // t is linear in wp, so the neighbour term's gradient of wp follows from the filters'.
  static void finish_filters(const StatisticsGradient& k, const Size& size, const float* filters, const float* wp,
                             float* dfilters, Scratch& scratch) {
    const int64_t C = size.C, width = padded(C);
    float* in_order = scratch.take(width);
    float* dwp = scratch.take(width);
    from_lanes<T>(k.dwp, C, dwp);
    for (int64_t tap = 0; tap < 9; ++tap) {
      from_lanes<T>(k.dfilters + tap * width, C, in_order);
      for (int64_t c = 0; c < C; ++c) {
        dwp[c] += filters[tap * C + c] * in_order[c] / 4;
        if (dfilters) dfilters[tap * C + c] += (wp ? wp[c] : 1.f) * in_order[c] / 4;
      }
    }
    std::copy_n(to_lanes<T>(dwp, C, 0.f, 0.f, scratch), width, k.dwp);
  }

  struct InputGradient {
    Rows<T> dz_rows, x_rows;
    int64_t dz_step;
    int64_t C;
    const float *w, *wp, *dchannel_mean, *dchannel_max, *channel_max, *s;
    SpatialGradient gradient;
    const float* dneighbors;
    const float* filters[9];

    template <int kTaps, bool kSpatial, bool kMaximum, size_t N>
    void write(const std::array<int64_t, N>& positions, const Taps* taps, const OutputRows<T>& dx_rows) const {
      const float *const w = this->w, *const wp = this->wp, *const dchannel_mean = this->dchannel_mean,
                  *const dchannel_max = this->dchannel_max, *const channel_max = this->channel_max;
      const int64_t C = this->C;
      const T *x[N], *dz[N];
      T* dx[N];
      Vec scale[N], maximum[N], other[N], most[N], outer[kTaps + 1];
      const float* filter[kTaps + 1];
      for (size_t n = 0; n < N; ++n) {
        x[n] = x_rows(positions[n]);
        dz[n] = dz_rows(positions[n] * dz_step);
        dx[n] = dx_rows.row(n, positions[n]);
        scale[n] = Vec(s[positions[n]]);
        if constexpr (kSpatial) {
          maximum[n] = Vec(gradient.maximum[positions[n]]);
          other[n] = Vec(gradient.other[positions[n]]);
          most[n] = Vec(gradient.most[positions[n]]);
        }
      }
      for (int k = 0; k < kTaps; ++k) {
        outer[k] = Vec(dneighbors[taps->output[k]] / 4);
        filter[k] = filters[taps->tap[k]];
      }
      for (int64_t c = 0; c < C; c += kBlock) {
        prefetch_ahead<(kTaps > 0)>(dz, c);
        prefetch_ahead<(kTaps > 0)>(x, c);
        const Pair w_c = load_block(w + c), wp_c = load_block(wp + c);
        // What all positions share: of the channel's mean and, through the cell, of the neighbours.
        Pair shared = load_block(dchannel_mean + c);
        if constexpr (kTaps > 0) {
          Pair up = load_block(filter[0] + c) * outer[0];
#pragma GCC unroll 4
          for (int k = 1; k < kTaps; ++k) up = fmadd(load_block(filter[k] + c), outer[k], up);
          shared = fmadd(up, wp_c, shared);
        }
#pragma GCC unroll 4
        for (size_t n = 0; n < N; ++n) {
          Pair value = fmadd(w_c * scale[n], load_block(dz[n] + c), shared);
          if constexpr (kSpatial || kMaximum) {
            const Pair x_c = load_block(x[n] + c);
            if constexpr (kSpatial) {
              value = fmadd(select_equal(wp_c * x_c, maximum[n], most[n], other[n]), wp_c, value);
            }
            if constexpr (kMaximum) {
              value = add_where_equal(value, x_c, load_block(channel_max + c), load_block(dchannel_max + c));
            }
          }
          store_block(dx[n] + c, value);
        }
      }
      dx_rows.finish(positions);
    }
  };
};

}  // namespace pixels
}  // namespace CPU_CAPABILITY
}  // namespace csham
