// Checks a LoRA product against test vectors (refimpl/oracle/vectors/FORMAT.md) with the standard library alone:
//     g++ -std=c++17 -O2 verify_lora.cpp -o verify_lora && ./verify_lora ../v1/lora/*
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

struct Tensor { size_t rows = 0, columns = 0; std::vector<double> at; };  // a double holds any float32 and int32

std::string slurp(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

template <class T> void take(Tensor& t, const char* p, const char* end) {
    for (T x; p < end; p += sizeof x) std::memcpy(&x, p, sizeof x), t.at.push_back(double(x));
}

// A tensor of a safetensors file: 8 bytes, the length of the header; the header in JSON; the numbers. Empty if absent.
Tensor tensor(const std::string& file, const std::string& name) {
    const size_t length = *reinterpret_cast<const size_t*>(file.data());
    const size_t place = file.find("\"" + name + "\":{");
    if (place == std::string::npos) return {};
    char* p = const_cast<char*>(std::strstr(file.data() + place, "\"shape\":[")) + 9;
    Tensor t{std::strtoul(p, &p, 10), *p == ',' ? std::strtoul(p + 1, &p, 10) : 1, {}};
    const char *data = file.data() + 8 + length, *from = data + std::strtoul(std::strstr(p, "offsets") + 10, &p, 10);
    const char* to = data + std::strtoul(p + 1, &p, 10);
    const std::string type = file.substr(file.find("\"dtype\":\"", place) + 9, 3);
    type == "F32" ? take<float>(t, from, to) : type == "F64" ? take<double>(t, from, to) : take<int>(t, from, to);
    return t;
}

// Put your own here: y[t] += weight * scale * (B A x[t] + bias), in float32. False: the input is refused.
bool lora(const std::string& in, std::vector<float>& y) {
    const Tensor x = tensor(in, "x"), scales = tensor(in, "scales");
    const Tensor ids = tensor(in, "adapter_ids"), weights = tensor(in, "adapter_weights");
    for (size_t t = 0; t < x.rows; ++t)
        for (size_t j = t * ids.columns; j < (t + 1) * ids.columns; ++j) {
            const std::string slot = std::to_string(int(ids.at[j]));
            if (slot == "-1") continue;
            const Tensor A = tensor(in, "A." + slot), B = tensor(in, "B." + slot), bias = tensor(in, "bias." + slot);
            if (A.rows == 0 || A.columns != x.columns || B.columns != A.rows) return false;
            std::vector<float> low(A.rows, 0);
            for (size_t i = 0, n = x.columns; i < A.at.size(); ++i) low[i / n] += float(A.at[i] * x.at[t * n + i % n]);
            for (size_t o = 0; o < B.rows; ++o) {
                float delta = bias.rows ? float(bias.at[o]) : 0;
                for (size_t r = 0; r < A.rows; ++r) delta += float(B.at[o * A.rows + r]) * low[r];
                y[t * B.rows + o] += float(weights.at[j] * scales.at[size_t(ids.at[j])]) * delta;
            }
        }
    return true;
}

bool passes(const std::string& folder) {
    const std::string in = slurp(folder + "/inputs.safetensors"), out = slurp(folder + "/expected.safetensors");
    const std::string manifest = slurp(folder + "/manifest.json");
    const Tensor before = tensor(in, "y"), wanted = tensor(out, "y"), bound = tensor(out, "y.bound.float32");
    std::vector<float> y(before.at.begin(), before.at.end());
    if (!lora(in, y)) return manifest.find("\"result\": \"valid\"") == std::string::npos;  // it may be refused
    if (wanted.at.empty()) return false;                                                    // it had to be
    double squares = 0;
    for (size_t i = 0; i < y.size(); squares += std::pow(y[i] - wanted.at[i], 2), ++i)
        if (!(std::fabs(y[i] - wanted.at[i]) <= bound.at[i / before.columns])) return false;  // as a NaN does
    const size_t noise = manifest.find("\"limit\": ", manifest.find("\"float32\": {"));
    return std::sqrt(squares / double(y.size())) <= std::strtod(manifest.c_str() + noise + 9, nullptr);
}

int main(int count, char** folders) {
    int wrong = 0;
    for (int f = 1; f < count; ++f) {
        const bool right = passes(folders[f]);
        std::printf("%s %s\n", right ? "pass" : "FAIL", folders[f]), wrong += !right;
    }
    return wrong != 0;
}
