//! Sums and medians that several attackers need.

/// The sum of products, as far as both slices reach. In eight sums, which the compiler turns into vector instructions.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let shorter = a.len().min(b.len());
    let (a, b) = (a[..shorter].chunks_exact(8), b[..shorter].chunks_exact(8));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    let mut sums = [0f32; 8];
    for (a, b) in a.zip(b) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// The middle value, or the upper one of two. There must be at least one.
pub(crate) fn median<T: Copy + PartialOrd>(values: &mut [T]) -> T {
    let middle = values.len() / 2;
    *values.select_nth_unstable_by(middle, |a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal)).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn product_of_unequal_lengths_pairs_equal_places() {
        let long: Vec<f32> = (0..27).map(|i| i as f32).collect();
        for (a, b) in [(27, 27), (27, 21), (13, 27), (8, 5), (3, 0)] {
            let plain: f32 = long[..a].iter().zip(&long[..b]).map(|(a, b)| a * b).sum();
            assert_eq!(dot(&long[..a], &long[..b]), plain, "{a} and {b}");
        }
    }

    #[test]
    fn median_is_the_middle_value() {
        assert_eq!(median(&mut [3, 1, 2]), 2);
        assert_eq!(median(&mut [4.0, 1.0, 2.0, 3.0]), 3.0);
    }
}
