use super::*;

#[test]
fn every_index_is_run_once_with_any_number_of_threads() {
    for threads in [0, 1, 2, 3, 9] {
        let pool = Pool::new(threads);
        assert_eq!(pool.threads(), threads.max(1));
        for tasks in [0, 1, 2, 3, 7, 100, 1000] {
            let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
            pool.run(tasks, &|i| {
                counts[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(
                counts.iter().all(|c| c.load(Ordering::Relaxed) == 1),
                "{threads} threads, {tasks} tasks"
            );
        }
    }
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
    let pool = Pool::new(3);
    for at in [0, 5, 99] {
        let caught = catch_unwind(AssertUnwindSafe(|| {
            pool.run(100, &|i| assert!(i != at, "task {at} fails"));
        }));
        let message = caught.expect_err("the panic must come through");
        assert_eq!(message.downcast_ref::<String>().map(String::as_str), Some(&*format!("task {at} fails")));
        let sum = AtomicUsize::new(0);
        pool.run(100, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 4950);
    }
}

#[test]
fn nested_and_concurrent_loops_complete() {
    let pool = Pool::new(4);
    let sum = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..200 {
                    pool.run(4, &|_| {
                        pool.run(4, &|i| {
                            sum.fetch_add(i, Ordering::Relaxed);
                        });
                    });
                }
            });
        }
    });
    assert_eq!(sum.into_inner(), 3 * 200 * 4 * 6);
}

#[test]
fn workers_that_parked_are_woken_again() {
    let pool = Pool::new(2);
    for round in 0..20 {
        if round % 2 == 0 {
            // A value to wait for, not a time: the worker says itself that it has parked.
            while !pool.shared.workers[0].parked.load(Ordering::SeqCst) {
                thread::yield_now();
            }
        }
        // Two tasks that wait for each other end only if both threads take part.
        let met = std::sync::Barrier::new(2);
        pool.run(2, &|_| {
            met.wait();
        });
    }
}

#[test]
fn rows_are_disjoint_and_complete() {
    let pool = Pool::new(3);
    let mut out = vec![0.0; 7 * 5];
    pool.for_each_row(&mut out, 5, &|row, line| line.fill(row as f32));
    assert!(out.iter().enumerate().all(|(i, &v)| v == (i / 5) as f32));
    pool.for_each_row(&mut [], 5, &|_, _| unreachable!("no rows"));
}

#[test]
fn dropping_right_after_a_loop_joins_every_thread() {
    for _ in 0..50 {
        let pool = Pool::new(4);
        pool.run(8, &|_| {});
        let shared = Arc::downgrade(&pool.shared);
        drop(pool);
        assert_eq!(shared.strong_count(), 0);
    }
}
