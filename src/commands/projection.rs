//! What eight GPUs would add to a step of one rank: a projection from published latencies, not a measurement.

/// (bytes, microseconds) of an all-reduce between 8 H100s by kernels over peer pointers, one-shot up to 256 KiB and
/// two-shot above: github.com/yifuwang/symm-mem-recipes up to 256 KiB, vllm-project/vllm pull request 42324 above.
const PUBLISHED: [(f64, f64); 12] = [
    (8e3, 10.8),
    (64e3, 12.2),
    (128e3, 13.9),
    (256e3, 18.3),
    (512e3, 15.0),
    (1e6, 17.0),
    (2e6, 22.0),
    (4e6, 37.0),
    (8e6, 65.0),
    (16e6, 125.0),
    (32e6, 242.0),
    (64e6, 468.0),
];

/// Seconds of one all-reduce of so many bytes between 8 GPUs: between two published sizes in proportion, below the
/// smallest as that, and above the largest by its rate.
pub fn all_reduce_seconds(bytes: f64) -> f64 {
    let (smallest, largest) = (PUBLISHED[0], PUBLISHED[PUBLISHED.len() - 1]);
    if bytes >= largest.0 {
        return largest.1 * bytes / largest.0 * 1e-6;
    }
    let after = PUBLISHED.iter().position(|(size, _)| *size > bytes).unwrap_or(0);
    if after == 0 {
        return smallest.1 * 1e-6;
    }
    let ((a, x), (b, y)) = (PUBLISHED[after - 1], PUBLISHED[after]);
    (x + (y - x) * (bytes - a) / (b - a)) * 1e-6
}

#[cfg(test)]
mod tests {
    use super::all_reduce_seconds;

    #[test]
    fn between_published_sizes_in_proportion() {
        for (bytes, microseconds) in
            [(1.0, 10.8), (8e3, 10.8), (36e3, 11.5), (3e6, 29.5), (64e6, 468.0), (128e6, 936.0)]
        {
            let got = all_reduce_seconds(bytes) * 1e6;
            assert!((got - microseconds).abs() < 1e-9, "{bytes}: {got}");
        }
    }
}
