//! Convolutions of every shape and format against nested loops.

use super::stream::{BF16, CONVOLUTION, Conv, FP16, INT4, INT8, Kind, Numbers, memory, output, run};

/// `[h][w][channel]`, by definition.
fn reference(conv: &Conv, feature: &[i32], weights: &[i32]) -> Vec<i32> {
    let ((width, height), channels) = (conv.out_size(), conv.out_channels());
    let input = |x: isize, y: isize, channel: usize| {
        let inside = x >= 0 && y >= 0 && (x as usize) < conv.width && (y as usize) < conv.height;
        if inside {
            feature[(y as usize * conv.width + x as usize) * conv.channels + channel]
        } else {
            conv.pad_value
        }
    };
    let mut out = vec![0; width * height * channels];
    for (index, sum) in out.iter_mut().enumerate() {
        let (pixel, output) = (index / channels, index % channels);
        let computed = if conv.depthwise { conv.channels } else { conv.outputs };
        if output >= computed {
            continue;
        }
        let mut total = 0;
        for tap in 0..conv.kernel.0 * conv.kernel.1 {
            let (kx, ky) = (tap % conv.kernel.0, tap / conv.kernel.0);
            let x = (pixel % width * conv.stride.0 + kx * conv.dilation.0) as isize - conv.pad[0] as isize;
            let y = (pixel / width * conv.stride.1 + ky * conv.dilation.1) as isize - conv.pad[1] as isize;
            let taps = conv.kernel.0 * conv.kernel.1;
            total += match conv.depthwise {
                true => weights[tap * conv.channels + output] * input(x, y, output),
                false => (0..conv.channels)
                    .map(|c| weights[(output * taps + tap) * conv.channels + c] * input(x, y, c))
                    .sum::<i32>(),
            };
        }
        *sum = if conv.kind == INT4 { total.clamp(-32768, 32767) } else { total };
    }
    out
}

fn check(conv: Conv, seed: u64) {
    let mut numbers = Numbers(seed);
    let limit = if conv.kind == INT4 { 8 } else { 128 };
    let rows = if conv.depthwise { 1 } else { conv.outputs };
    let feature = numbers.signed(conv.width * conv.height * conv.channels, limit);
    let weights = numbers.signed(rows * conv.kernel.0 * conv.kernel.1 * conv.channels, limit);
    let out_bytes = conv.out_size().0 * conv.out_size().1 * conv.out_channels() * conv.kind.out.1;
    let memory = memory(&conv.pack_feature(&feature), &conv.pack_weights(&weights), out_bytes);
    if let Err(stopped) = run(&memory, &[(conv.words(), CONVOLUTION)]) {
        panic!("{conv:?}: {:?}", stopped.error);
    }
    assert!(output(&conv, &memory) == reference(&conv, &feature, &weights), "{conv:?}, seed {seed}");
}

fn random(numbers: &mut Numbers, kind: Kind, depthwise: bool) -> Conv {
    let mut conv = Conv {
        kind,
        depthwise,
        width: 1 + numbers.next(9),
        height: 1 + numbers.next(9),
        tensor_width: 0,
        channels: 1 + numbers.next(90),
        outputs: 1 + numbers.next(70),
        kernel: (1 + numbers.next(4), 1 + numbers.next(4)),
        stride: (1 + numbers.next(3), 1 + numbers.next(3)),
        dilation: (1 + numbers.next(2), 1 + numbers.next(2)),
        pad: [0; 4].map(|_: usize| numbers.next(3)),
        pad_value: numbers.next(15) as i32 - 7,
    };
    conv.tensor_width = conv.width + if numbers.next(3) == 0 { 1 + numbers.next(5) } else { 0 };
    // An image at least as large as what the kernel covers.
    conv.width = conv.width.max((conv.kernel.0 - 1) * conv.dilation.0 + 1);
    conv.height = conv.height.max((conv.kernel.1 - 1) * conv.dilation.1 + 1);
    conv.tensor_width = conv.tensor_width.max(conv.width);
    conv
}

#[test]
fn direct_convolutions_agree_with_loops() {
    let mut numbers = Numbers(11);
    for round in 0..60 {
        for kind in [INT8, INT4, FP16, BF16] {
            let conv = random(&mut numbers, kind, false);
            check(conv, 100 + round);
        }
    }
}

#[test]
fn depthwise_convolutions_agree_with_loops() {
    let mut numbers = Numbers(12);
    for round in 0..60 {
        for kind in [FP16, BF16] {
            let conv = random(&mut numbers, kind, true);
            check(conv, 200 + round);
        }
    }
}

#[test]
fn products_of_extremes_do_not_overflow() {
    for (kind, least) in [(INT8, -128), (INT4, -8)] {
        let conv = Conv::pointwise(kind, 3, 8192, 64);
        let (feature, weights) = (vec![least; 3 * 8192], vec![least; 64 * 8192]);
        let memory = memory(&conv.pack_feature(&feature), &conv.pack_weights(&weights), 3 * 64 * 4);
        run(&memory, &[(conv.words(), CONVOLUTION)]).unwrap();
        let expected = if kind == INT4 { 32767 } else { 8192 << 14 };
        assert!(output(&conv, &memory).iter().all(|value| *value == expected), "{kind:?}");
    }
}
