use super::*;

#[test]
fn text_and_plan_are_each_others_inverse() {
    let text = "seed=12,timeout=0.25,status@3,interrupt%7,nomem=1,gone@9,dead@100,flip=0";
    let plan: FaultPlan = text.parse().unwrap();
    assert_eq!(plan.to_string(), text);
    assert_eq!(plan.rules().len(), 7);
    assert_eq!(" seed=1 , flip%2 ".parse::<FaultPlan>().unwrap().to_string(), "seed=1,flip%2");
    assert_eq!("".parse::<FaultPlan>().unwrap(), FaultPlan::default());
}

#[test]
fn bad_rules_are_named() {
    for (text, error) in [
        ("bogus=1", ParseFaultPlanError::UnknownName("bogus".into())),
        ("timeout", ParseFaultPlanError::BadRule("timeout".into())),
        ("timeout=1.5", ParseFaultPlanError::BadRule("timeout=1.5".into())),
        ("timeout=NaN", ParseFaultPlanError::BadRule("timeout=NaN".into())),
        ("flip@x", ParseFaultPlanError::BadRule("flip@x".into())),
        ("seed=-1", ParseFaultPlanError::BadRule("seed=-1".into())),
        ("seed@4", ParseFaultPlanError::UnknownName("seed".into())),
    ] {
        assert_eq!(text.parse::<FaultPlan>().unwrap_err(), error, "{text}");
    }
}

#[test]
fn scripts_fire_at_their_events_and_nowhere_else() {
    let injector = FaultInjector::new("timeout@3,flip%4,nomem@2".parse().unwrap());
    let fired: Vec<_> = (1..=8).map(|_| injector.job()).map(|f| (f.time_out, f.bit_flip)).collect();
    let want: Vec<_> = (1..=8).map(|job| (job == 3, job % 4 == 0)).collect();
    assert_eq!(fired, want);
    assert_eq!([0; 3].map(|_| injector.allocation_succeeds()), [true, false, true]);
    let counts = injector.counts();
    assert_eq!((counts.jobs, counts.allocations, counts.total()), (8, 3, 4));
    assert_eq!(counts.injected(Fault::BitFlip), 2);
}

#[test]
fn probabilities_are_kept_and_draws_are_repeatable() {
    let plan = FaultPlan::new(99).with(Fault::TimeOut, Trigger::Probability(0.1));
    let run = |plan: &FaultPlan| {
        let injector = FaultInjector::new(plan.clone());
        (0..10_000).map(|_| injector.job()).collect::<Vec<_>>()
    };
    let first = run(&plan);
    assert_eq!(first, run(&plan));
    let fired = first.iter().filter(|faults| faults.time_out).count();
    assert!((850..1150).contains(&fired), "{fired} of 10,000 at 0.1");
    assert_ne!(first, run(&FaultPlan::new(100).with(Fault::TimeOut, Trigger::Probability(0.1))));
}

#[test]
fn a_job_has_at_most_one_fault() {
    let mut plan = FaultPlan::new(5);
    for fault in Fault::ALL {
        plan = plan.with(fault, Trigger::Probability(0.3));
    }
    let injector = FaultInjector::new(plan);
    for _ in 0..1000 {
        let f = injector.job();
        let faults = [f.time_out, f.wrong_status, f.lost_interrupt, f.gone.is_some(), f.bit_flip];
        assert!(faults.iter().filter(|fault| **fault).count() <= 1);
    }
    assert!(
        Fault::ALL.iter().all(|fault| *fault == Fault::OutOfMemory || injector.counts().injected(*fault) > 0)
    );
}
