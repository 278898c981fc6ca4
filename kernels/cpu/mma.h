// Tensor cores for a CPU: nvcuda::wmma, in the shapes 16x16x16, 32x8x16 and 8x32x16 with float sums.
//
// A fragment is a matrix dealt out to the lanes of a warp. A GPU does not say which lane holds what; here element e of
// lane l is element 32 e + l of the matrix, row by row. A GPU also sums in an order and a precision of its own.
#pragma once
#include "cuda_on_cpu.h"

namespace nvcuda::wmma {

struct row_major {};
struct col_major {};
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
enum layout_t { mem_row_major, mem_col_major };

template <class Use, int m, int n, int k> struct Extent;  // rows and columns of one operand
template <int m, int n, int k> struct Extent<matrix_a, m, n, k> { enum { rows = m, columns = k }; };
template <int m, int n, int k> struct Extent<matrix_b, m, n, k> { enum { rows = k, columns = n }; };
template <int m, int n, int k> struct Extent<accumulator, m, n, k> { enum { rows = m, columns = n }; };

template <class Use, int m, int n, int k, class T, class Layout = void> struct fragment {
    enum { rows = Extent<Use, m, n, k>::rows, columns = Extent<Use, m, n, k>::columns, num_elements = rows * columns / 32 };
    T x[num_elements];
};

template <class Fragment, class T> void fill_fragment(Fragment &f, T value) {
    for (auto &x : f.x) x = value;
}

// Where element e of this lane lies in memory.
template <class Fragment> int place(int e, bool by_rows, unsigned stride) {
    int i = e * 32 + cpu::my_lane(), row = i / Fragment::columns, column = i % Fragment::columns;
    return by_rows ? row * stride + column : column * stride + row;
}
template <class T> void check_place(const T *p, unsigned stride, const char *word, const char *file, int line) {
    if ((size_t)p % 32 || stride * sizeof(T) % 16)
        cpu::fail("misaligned", file, line, nullptr, "%s wants an address that is a multiple of 32 and rows of a multiple "
                  "of 16 bytes; this is %p with rows of %zu", word, (const void *)p, stride * sizeof(T));
}

template <class Use, int m, int n, int k, class T, class Layout>
void load_matrix_sync(fragment<Use, m, n, k, T, Layout> &f, const T *p, unsigned stride, HERE) {
    check_place(p, stride, "load_matrix_sync", file, line);
    cpu::votes("load_matrix_sync", cpu::EVERYONE, 0, file, line);
    bool by_rows = std::is_same_v<Layout, row_major>;
    for (int e = 0; e < f.num_elements; e++) f.x[e] = p[place<std::remove_reference_t<decltype(f)>>(e, by_rows, stride)];
}
template <int m, int n, int k, class T>
void load_matrix_sync(fragment<accumulator, m, n, k, T> &f, const T *p, unsigned stride, layout_t layout, HERE) {
    check_place(p, stride, "load_matrix_sync", file, line);
    cpu::votes("load_matrix_sync", cpu::EVERYONE, 0, file, line);
    for (int e = 0; e < f.num_elements; e++)
        f.x[e] = p[place<std::remove_reference_t<decltype(f)>>(e, layout == mem_row_major, stride)];
}
template <int m, int n, int k, class T>
void store_matrix_sync(T *p, const fragment<accumulator, m, n, k, T> &f, unsigned stride, layout_t layout, HERE) {
    check_place(p, stride, "store_matrix_sync", file, line);
    cpu::votes("store_matrix_sync", cpu::EVERYONE, 0, file, line);
    for (int e = 0; e < f.num_elements; e++)
        p[place<fragment<accumulator, m, n, k, T>>(e, layout == mem_row_major, stride)] = f.x[e];
}

// d = a b + c: the lanes show each other what they hold of a and b, then each computes its own elements of d.
template <int m, int n, int k, class T, class LayoutA, class LayoutB>
void mma_sync(fragment<accumulator, m, n, k, float> &d, const fragment<matrix_a, m, n, k, T, LayoutA> &a,
              const fragment<matrix_b, m, n, k, T, LayoutB> &b, const fragment<accumulator, m, n, k, float> &c, HERE) {
    struct Held {
        T a[m * k / 32], b[k * n / 32];
    } mine;
    memcpy(mine.a, a.x, sizeof mine.a), memcpy(mine.b, b.x, sizeof mine.b);
    static_assert(sizeof(Held) <= cpu::LANE_BYTES, "too large to show");
    const cpu::Lanes &lanes = cpu::meet("mma_sync", cpu::EVERYONE, &mine, sizeof mine, file, line);
    for (int e = 0; e < d.num_elements; e++) {
        int i = e * 32 + cpu::my_lane(), row = i / n, column = i % n;
        float sum = c.x[e];
        for (int j = 0; j < k; j++) {
            int in_a = row * k + j, in_b = j * n + column;
            sum += (float)((const Held *)lanes.value[in_a % 32])->a[in_a / 32] *
                   (float)((const Held *)lanes.value[in_b % 32])->b[in_b / 32];
        }
        d.x[e] = sum;
    }
}

}  // namespace nvcuda::wmma
