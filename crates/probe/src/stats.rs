//! Numbers that outliers do not bend: medians, spreads, and how unlikely something is.

/// The value below which a share `p` of `sorted` lies (linear interpolation).
pub fn quantile(sorted: &[f64], p: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    #[expect(clippy::cast_precision_loss, reason = "positions in a list")]
    let at = last as f64 * p.clamp(0.0, 1.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the length")]
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    let get = |i: usize| sorted.get(i.min(last)).copied().unwrap_or(f64::NAN);
    get(low) + (get(high) - get(low)) * at.fract()
}

/// Sorted, without what is no number.
pub fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut all: Vec<f64> = values.into_iter().filter(|v| v.is_finite()).collect();
    all.sort_by(f64::total_cmp);
    all
}

/// The middle.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    quantile(&sorted(values), 0.5)
}

/// Spread around the middle, on the scale of a standard deviation.
pub fn spread(values: &[f64], middle: f64) -> f64 {
    // The factor makes it the standard deviation where values are normal.
    1.4826 * median(values.iter().map(|v| (v - middle).abs()))
}

/// Probability of a value at least `t` in Student's distribution with `freedom` degrees: tails as heavy as a spread that
/// is known from few values deserves.
pub fn tail(t: f64, freedom: f64) -> f64 {
    if t <= 0.0 {
        return 1.0 - if t < 0.0 { tail(-t, freedom) } else { 0.5 };
    }
    0.5 * beta_part(freedom / (freedom + t * t), freedom / 2.0, 0.5)
}

/// Regularised incomplete beta function, by its continued fraction (Lentz).
fn beta_part(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return x.clamp(0.0, 1.0);
    }
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - beta_part(1.0 - x, b, a);
    }
    let front = (log_gamma(a + b) - log_gamma(a) - log_gamma(b) + a * x.ln() + b * (1.0 - x).ln()).exp() / a;
    let tiny = |v: f64| if v.abs() < 1e-300 { 1e-300 } else { v };
    let (mut c, mut d) = (1.0, 1.0 / tiny(1.0 - (a + b) * x / (a + 1.0)));
    let mut sum = d;
    for step in 1..300 {
        let m = f64::from(step);
        for numerator in [
            m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0)),
        ] {
            d = 1.0 / tiny(1.0 + numerator * d);
            c = tiny(1.0 + numerator / c);
            sum *= c * d;
        }
        if (c * d - 1.0).abs() < 1e-12 {
            break;
        }
    }
    front * sum
}

/// Logarithm of the gamma function (Lanczos).
fn log_gamma(x: f64) -> f64 {
    const PARTS: [f64; 6] = [
        76.180_091_729_471_46,
        -86.505_320_329_416_77,
        24.014_098_240_830_91,
        -1.231_739_572_450_155,
        1.208_650_973_866_179e-3,
        -5.395_239_384_953e-6,
    ];
    let (mut y, base) = (x, x + 5.5);
    let mut sum = 1.000_000_000_190_015;
    for part in PARTS {
        y += 1.0;
        sum += part / y;
    }
    (x + 0.5) * base.ln() - base + (2.506_628_274_631_000_5 * sum / x).ln()
}

/// Probability of at least `hits` of `drawn`, when `marked` of `all` are marked and they are drawn blindly (Fisher).
pub fn at_least(hits: u64, drawn: u64, marked: u64, all: u64) -> f64 {
    let log_choose = |n: u64, k: u64| {
        #[expect(clippy::cast_precision_loss, reason = "counts of operations")]
        let g = |v: u64| log_gamma(v as f64 + 1.0);
        g(n) - g(k) - g(n - k)
    };
    let most = drawn.min(marked);
    let least = (drawn + marked).saturating_sub(all);
    let all_ways = log_choose(all, drawn);
    let of = |k: u64| (log_choose(marked, k) + log_choose(all - marked, drawn - k) - all_ways).exp();
    (hits.max(least)..=most).map(of).sum::<f64>().min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        assert!((quantile(&[1.0, 2.0, 3.0, 4.0], 0.5) - 2.5).abs() < 1e-12);
        assert!(quantile(&[], 0.5).is_nan());
        let bent = [1.0, 1.1, 0.9, 1.0, 50.0];
        assert!((median(bent) - 1.0).abs() < 1e-12 && spread(&bent, 1.0) < 0.2);
        // Tables of Student's distribution.
        for (t, freedom, p) in
            [(2.132, 4.0, 0.05), (2.764, 10.0, 0.01), (1.96, 1e6, 0.025), (-2.132, 4.0, 0.95)]
        {
            assert!((tail(t, freedom) - p).abs() < 2e-4, "{t} {freedom}: {}", tail(t, freedom));
        }
        // Fisher's tea: four of four right of eight cups.
        assert!((at_least(4, 4, 4, 8) - 1.0 / 70.0).abs() < 1e-6);
        assert!((at_least(0, 4, 4, 8) - 1.0).abs() < 1e-6);
    }
}
