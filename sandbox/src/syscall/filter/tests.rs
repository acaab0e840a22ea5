#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::syscall::ArgTest;
use crate::syscall::Profile;
use crate::syscall::program::{Instruction, run};
use crate::syscall::table::{syscall_number, syscalls};

const I386: u32 = 0x4000_0003;

#[test]
fn the_filter_decides_every_call_as_the_profile_does() {
    for name in Profile::names() {
        for listener in [false, true] {
            let spec = Profile::named(name).unwrap().spec(listener).unwrap();
            agree(&spec);
        }
    }
}

#[test]
fn a_filter_too_long_for_short_jumps_decides_the_same() {
    // Every rule differs from its neighbours, so nothing is merged and blocks lie far apart.
    let mut spec = FilterSpec::new(Action::Notify);
    for nr in 0..240 {
        let rule = SyscallRule {
            conditional: vec![
                (vec![ArgTest::low_is(1, nr)], Action::Allow),
                (
                    vec![ArgTest::full_without(1, 1 << 40 | u64::from(nr))],
                    Action::Trap,
                ),
                (vec![ArgTest::low_with(1, nr | 1)], Action::Errno(nr as u16)),
            ],
            otherwise: Action::Errno(1000 + nr as u16),
        };
        spec.rules.insert(nr, rule);
    }
    assert!(spec.compile().unwrap().instructions().len() > 2000);
    agree(&spec);
}

#[test]
fn a_filter_the_kernel_would_not_take_is_refused() {
    let mut spec = FilterSpec::new(Action::Kill);
    for nr in 0..400 {
        let conditional = (0..8)
            .map(|i| {
                (
                    vec![ArgTest::low_is(0, nr * 8 + i)],
                    Action::Errno(i as u16),
                )
            })
            .collect();
        spec.rules.insert(
            nr,
            SyscallRule {
                conditional,
                otherwise: Action::Kill,
            },
        );
    }
    assert!(matches!(spec.compile(), Err(CompileError::TooLong { .. })));
}

#[test]
fn rules_that_cannot_be_meant_are_refused() {
    let compile = |nr, test, action| {
        let mut spec = FilterSpec::new(Action::Kill);
        let rule = SyscallRule {
            conditional: vec![(vec![test], action)],
            otherwise: Action::Kill,
        };
        spec.rules.insert(nr, rule);
        spec.compile()
    };
    assert!(compile(1, ArgTest::low_is(5, 0), Action::Allow).is_ok());
    assert!(matches!(
        compile(1, ArgTest::low_is(6, 0), Action::Allow),
        Err(CompileError::Argument { nr: 1, index: 6 })
    ));
    assert!(matches!(
        compile(
            1,
            ArgTest::Low {
                index: 0,
                mask: 1,
                value: 2
            },
            Action::Allow
        ),
        Err(CompileError::Unsatisfiable { .. })
    ));
    assert!(matches!(
        compile(
            1,
            ArgTest::Between {
                index: 0,
                min: 2,
                max: 1
            },
            Action::Allow
        ),
        Err(CompileError::Unsatisfiable { .. })
    ));
    assert!(matches!(
        compile(1, ArgTest::low_is(0, 0), Action::Errno(4096)),
        Err(CompileError::Errno { errno: 4096 })
    ));
    assert!(matches!(
        compile(NR_SPACE, ArgTest::low_is(0, 0), Action::Allow),
        Err(CompileError::Number { .. })
    ));
}

#[test]
fn an_ioctl_command_is_not_hidden_by_its_upper_half() {
    let program = Profile::named("default").unwrap().compile(false).unwrap();
    let ioctl = syscall_number("ioctl").unwrap();
    let verdict = |command| {
        let data = SeccompData::new(ioctl, [0, command, 0, 0, 0, 0]);
        Action::from_verdict(program.evaluate(&data)).unwrap()
    };
    let tiocsti = 0x5412;
    assert_eq!(verdict(tiocsti), Action::Errno(libc::EPERM as u16));
    assert_eq!(
        verdict(tiocsti + 0x1_0000_0000),
        Action::Errno(libc::EPERM as u16)
    );
    assert_eq!(verdict(tiocsti + 1), Action::Allow);
}

#[test]
fn calls_allowed_on_no_condition_keep_the_kernels_cache() {
    let spec = Profile::named("default").unwrap().spec(true).unwrap();
    let program = spec.compile().unwrap();
    let mut cached = 0;
    for (nr, name) in syscalls() {
        let always = spec.rules[&nr] == SyscallRule::always(Action::Allow);
        assert_eq!(program.is_cached(nr), always, "{name}");
        cached += usize::from(always);
    }
    assert!(cached > 200);
}

/// The list the reference measured had 333 calls in natural ranges; here only what is dangerous is
/// left out, which makes 330.
#[test]
fn an_allow_list_of_330_calls_takes_at_most_120_instructions() {
    let denied: Vec<_> = syscalls().map(|(nr, _)| nr).step_by(7).collect();
    let allowed: Vec<_> = syscalls()
        .map(|(nr, _)| nr)
        .filter(|nr| !denied.contains(nr))
        .collect();
    let length = allow_list(&allowed).compile().unwrap().instructions().len();
    println!(
        "{} calls allowed, every 7th denied: {length} instructions",
        allowed.len()
    );
    assert!(allowed.len() >= 270);
    assert!(length <= 120, "{length}");

    for listener in [false, true] {
        let program = Profile::named("default")
            .unwrap()
            .compile(listener)
            .unwrap();
        println!(
            "default profile: {} instructions",
            program.instructions().len()
        );
        assert!(program.instructions().len() < 400);
    }
}

#[test]
fn seccompiler_decides_the_same_from_the_same_list() {
    let profile = Profile::named("default").unwrap();
    let allowed: Vec<u32> = profile.allowed().filter_map(syscall_number).collect();
    let ours = allow_list(&allowed).compile().unwrap();
    let theirs = oracle(allowed.iter().map(|nr| (i64::from(*nr), Vec::new())));
    assert!(
        ours.instructions().len() * 5 < theirs.len(),
        "the tree is no smaller than the list"
    );
    for nr in 0..=highest_syscall() {
        let data = SeccompData::new(nr, [0; 6]);
        assert_eq!(Some(ours.evaluate(&data)), run(&theirs, &data), "{nr}");
    }
    let foreign = SeccompData {
        arch: I386,
        ..SeccompData::default()
    };
    assert_eq!(Some(ours.evaluate(&foreign)), run(&theirs, &foreign));
}

#[test]
fn the_tree_loads_faster_than_the_list() {
    use crate::sys::seccomp::{LoadFlags, load};
    use crate::syscall::landlock::{LandlockPlan, Rights, Scopes};

    let profile = Profile::named("default").unwrap();
    let allowed: Vec<u32> = profile.allowed().filter_map(syscall_number).collect();
    let list = oracle(allowed.iter().map(|nr| (i64::from(*nr), Vec::new())));
    let list = Program::new(list).unwrap();
    let best = |program: &Program| {
        // Filters stay with their thread, and each makes loading the next one dearer.
        let once = || {
            std::thread::scope(|scope| {
                let loading = scope.spawn(|| {
                    // Sets no_new_privs for this thread, which loading needs.
                    let plan = LandlockPlan::new([("/", Rights::READ)], Scopes::default());
                    plan.build().unwrap().restrict_self().unwrap();
                    let start = std::time::Instant::now();
                    load(program, LoadFlags::default()).unwrap();
                    start.elapsed()
                });
                loading.join().unwrap()
            })
        };
        (0..20).map(|_| once()).min().unwrap()
    };
    let (tree, full, list) = (
        best(&allow_list(&allowed).compile().unwrap()),
        best(&profile.compile(true).unwrap()),
        best(&list),
    );
    println!("tree {tree:?}, default profile {full:?}, list {list:?}");
    assert!(tree * 2 < list, "tree {tree:?}, list {list:?}");
}

#[test]
fn seccompiler_decides_the_same_about_arguments() {
    use seccompiler::{SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompRule};
    let condition = |index, len, op, value| SeccompCondition::new(index, len, op, value).unwrap();
    let theirs = oracle([(
        1,
        vec![
            SeccompRule::new(vec![
                condition(0, Len::Dword, Op::MaskedEq(0xff00), 0x1200),
                condition(
                    5,
                    Len::Qword,
                    Op::MaskedEq(0xf000_0000_0000_000f),
                    0x1000_0000_0000_0001,
                ),
            ])
            .unwrap(),
            SeccompRule::new(vec![
                condition(2, Len::Qword, Op::Ge, 0x1_0000_0005),
                condition(2, Len::Qword, Op::Le, 0x3_0000_0003),
            ])
            .unwrap(),
        ],
    )]);
    let mut spec = FilterSpec::new(Action::Errno(libc::EPERM as u16));
    spec.rules.insert(
        1,
        SyscallRule {
            conditional: vec![
                (
                    vec![
                        ArgTest::Low {
                            index: 0,
                            mask: 0xff00,
                            value: 0x1200,
                        },
                        ArgTest::Full {
                            index: 5,
                            mask: 0xf000_0000_0000_000f,
                            value: 0x1000_0000_0000_0001,
                        },
                    ],
                    Action::Allow,
                ),
                (
                    vec![ArgTest::Between {
                        index: 2,
                        min: 0x1_0000_0005,
                        max: 0x3_0000_0003,
                    }],
                    Action::Allow,
                ),
            ],
            otherwise: spec.default,
        },
    );
    let ours = spec.compile().unwrap();
    for data in interesting(1, &spec.rules[&1]) {
        assert_eq!(Some(ours.evaluate(&data)), run(&theirs, &data), "{data:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_rules_compile_to_a_filter_that_decides_as_they_do(
        rules in proptest::collection::btree_map(0u32..480, rule(), 0..40),
        default in action(),
    ) {
        agree(&FilterSpec { rules, default });
    }
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        Just(Action::Allow),
        Just(Action::Notify),
        Just(Action::Log),
        Just(Action::Trap),
        Just(Action::Kill),
        (0u16..4).prop_map(Action::Errno),
    ]
}

fn rule() -> impl Strategy<Value = SyscallRule> {
    let conditional =
        proptest::collection::vec((proptest::collection::vec(test(), 0..3), action()), 0..3);
    (conditional, action()).prop_map(|(conditional, otherwise)| SyscallRule {
        conditional,
        otherwise,
    })
}

fn test() -> impl Strategy<Value = ArgTest> {
    // Few indexes and few bits, so that tests meet each other.
    let number = prop_oneof![
        Just(0u64),
        Just(1),
        Just(1 << 31),
        Just(1 << 32),
        any::<u64>()
    ];
    (0u8..2, number.clone(), number, 0u8..4).prop_map(|(index, a, b, kind)| match kind {
        0 => ArgTest::Low {
            index,
            mask: a as u32,
            value: b as u32 & a as u32,
        },
        1 => ArgTest::Full {
            index,
            mask: a,
            value: b & a,
        },
        2 => ArgTest::LowBetween {
            index,
            min: (a as u32).min(b as u32),
            max: (a as u32).max(b as u32),
        },
        _ => ArgTest::Between {
            index,
            min: a.min(b),
            max: a.max(b),
        },
    })
}

fn allow_list(allowed: &[u32]) -> FilterSpec {
    let mut spec = FilterSpec::new(Action::Errno(libc::EPERM as u16));
    for nr in allowed {
        spec.rules.insert(*nr, SyscallRule::always(Action::Allow));
    }
    spec
}

fn oracle(
    rules: impl IntoIterator<Item = (i64, Vec<seccompiler::SeccompRule>)>,
) -> Vec<Instruction> {
    let filter = seccompiler::SeccompFilter::new(
        rules.into_iter().collect(),
        seccompiler::SeccompAction::Errno(libc::EPERM as u32),
        seccompiler::SeccompAction::Allow,
        std::env::consts::ARCH.try_into().unwrap(),
    )
    .unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    let ours = |one: &seccompiler::sock_filter| Instruction {
        code: one.code,
        jt: one.jt,
        jf: one.jf,
        k: one.k,
    };
    program.iter().map(ours).collect()
}

/// Compares the program with the rules on every number, architecture and boundary argument.
fn agree(spec: &FilterSpec) {
    let program = spec.compile().unwrap();
    let check = |data: &SeccompData| {
        let (said, meant) = (program.evaluate(data), spec.decide(data));
        assert_eq!(
            said,
            meant.verdict(),
            "{data:x?} should be: {meant}\n{program}"
        );
    };
    let outside = [
        NR_SPACE - 1,
        NR_SPACE,
        NR_SPACE | 59,
        i32::MAX as u32,
        1 << 31,
        u32::MAX,
    ];
    for nr in (0..=spec.highest() + 3).chain(outside) {
        for arch in [NATIVE_ARCH, I386, 0, u32::MAX, NATIVE_ARCH ^ 1] {
            for args in [[0; 6], [u64::MAX; 6]] {
                check(&SeccompData {
                    nr,
                    arch,
                    instruction_pointer: u64::MAX,
                    args,
                });
            }
        }
        if let Some(rule) = spec.rules.get(&nr) {
            interesting(nr, rule).iter().for_each(check);
        }
    }
}

/// Calls whose arguments lie on, beside and 2^32 away from every value the rule compares with.
fn interesting(nr: u32, rule: &SyscallRule) -> Vec<SeccompData> {
    let mut values: [BTreeSet<u64>; 6] = Default::default();
    for test in rule.conditional.iter().flat_map(|(tests, _)| tests) {
        let (index, points) = match *test {
            ArgTest::Low { index, mask, value } => (
                index,
                vec![
                    value.into(),
                    mask.into(),
                    u64::from(!mask),
                    u64::from(value | !mask),
                ],
            ),
            ArgTest::Full { index, mask, value } => {
                (index, vec![value, mask, !mask, value | !mask])
            }
            ArgTest::LowBetween { index, min, max } => (index, vec![min.into(), max.into()]),
            ArgTest::Between { index, min, max } => (index, vec![min, max]),
        };
        for point in points {
            for near in [point, point.wrapping_sub(1), point.wrapping_add(1)] {
                values[usize::from(index)].extend([near, near ^ (1 << 32), near ^ (1 << 63)]);
            }
        }
    }
    let mut calls = vec![[0u64; 6]];
    for (index, values) in values
        .iter()
        .enumerate()
        .filter(|(_, values)| !values.is_empty())
    {
        calls = calls
            .iter()
            .flat_map(|call| {
                values.iter().map(|value| {
                    let mut call = *call;
                    call[index] = *value;
                    call
                })
            })
            .collect();
    }
    calls
        .into_iter()
        .map(|args| SeccompData::new(nr, args))
        .collect()
}
