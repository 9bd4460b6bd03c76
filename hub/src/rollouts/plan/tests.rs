use proptest::prelude::*;
use protocol::command::State as Command;

use super::*;

const START: Timestamp = Timestamp::from_millis(1_795_392_000_000);

fn at(seconds: u64) -> Timestamp {
    START.plus(Duration::from_secs(seconds))
}

fn now(seconds: u64) -> Moment {
    Moment { steady: at(seconds), wall: at(seconds), fresh: false }
}

fn node(number: u8) -> NodeId {
    NodeId::new(START, [number; 10])
}

fn limits() -> Limits {
    Limits {
        rate: None,
        windows: Vec::new(),
        settle: Duration::from_secs(60),
        soak: Duration::from_secs(30),
        most_failed: 10,
        most_regressed: 10,
    }
}

fn position(wave: u32, waves: u32, soaking_since: Option<u64>) -> Position {
    Position { state: State::Running, wave, waves, soaking_since: soaking_since.map(at) }
}

/// A node that is there and was not asked.
fn fresh(number: u8, wave: u32) -> Member {
    Member {
        node: node(number),
        wave,
        standing: Standing::Pending,
        asked_at: None,
        told_at: None,
        open_until: None,
        was_there: true,
        was_well: true,
        accepted: false,
        health: Health::Well,
    }
}

/// One that was asked and told at the start.
fn asked(number: u8, wave: u32, state: Command) -> Member {
    let told_at = (state != Command::Queued).then(|| at(0));
    Member { standing: Standing::Asked(state), asked_at: Some(at(0)), told_at, ..fresh(number, wave) }
}

fn wave(states: &[Command]) -> Vec<Member> {
    states.iter().zip(0..).map(|(state, number)| asked(number, 1, *state)).collect()
}

fn halted(act: Act) -> Cause {
    match act {
        Act::Halt(cause) => cause,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_wave_is_asked_answers_is_watched_and_followed() {
    let (mut members, first) = (vec![fresh(0, 1), fresh(1, 2)], position(1, 2, None));
    assert_eq!(step(&first, &limits(), &members, now(0)), Act::Ask(vec![node(0)]));
    members[0] = asked(0, 1, Command::Running);
    assert_eq!(step(&first, &limits(), &members, now(1)), Act::Wait(Waiting::Answers(at(60))));
    members[0] = asked(0, 1, Command::Succeeded);
    assert_eq!(step(&first, &limits(), &members, now(2)), Act::Soak);
    let watched = position(1, 2, Some(2));
    assert_eq!(step(&watched, &limits(), &members, now(31)), Act::Wait(Waiting::Soak(at(32))));
    assert_eq!(step(&watched, &limits(), &members, now(32)), Act::Next);
    assert_eq!(step(&position(2, 2, None), &limits(), &members, now(32)), Act::Ask(vec![node(1)]));
    members[1] = asked(1, 2, Command::Succeeded);
    assert_eq!(step(&position(2, 2, Some(32)), &limits(), &members, now(62)), Act::Finish);
    for state in [State::Paused, State::Halted, State::Aborted, State::Done] {
        let held = Position { state, ..position(1, 2, None) };
        assert_eq!(step(&held, &limits(), &members, now(99)), Act::Wait(Waiting::Person));
    }
}

#[test]
fn over_the_share_of_failures_and_time_outs_it_halts_and_at_it_it_does_not() {
    let mut states = [Command::Succeeded; 10];
    states[0] = Command::Failed;
    assert_eq!(step(&position(1, 2, None), &limits(), &wave(&states), now(1)), Act::Soak, "10 % is not more than 10 %");
    states[1] = Command::Unknown;
    let cause = halted(step(&position(1, 2, None), &limits(), &wave(&states), now(1)));
    assert_eq!((cause.what, cause.of), (Wrong::Failed { timed_out: 1, most: 10 }, 10));
    assert_eq!(cause.nodes, [node(0), node(1)]);
    states[1] = Command::Running;
    let running = |seconds| step(&position(1, 2, None), &limits(), &wave(&states), now(seconds));
    assert_eq!(running(59), Act::Wait(Waiting::Answers(at(60))));
    assert_eq!(halted(running(60)).what, Wrong::Failed { timed_out: 1, most: 10 });
    let late = step(&position(2, 2, None), &limits(), &wave(&states), now(60));
    assert_eq!(halted(late).wave, 1, "also when its wave is through");
    let mut accepted = wave(&states);
    accepted[0].accepted = true;
    assert_eq!(step(&position(1, 2, None), &limits(), &accepted, now(60)), Act::Soak);
}

#[test]
fn nodes_that_were_well_and_are_not_while_they_are_watched_halt_it() {
    let mut members = wave(&[Command::Succeeded; 4]);
    members[0].health = Health::Unwell;
    let asking = position(1, 1, None);
    assert_eq!(step(&asking, &limits(), &members, now(1)), Act::Soak, "while it is at it, a service may be down");
    let watched = position(1, 1, Some(1));
    let cause = halted(step(&watched, &limits(), &members, now(2)));
    assert_eq!((cause.what, &*cause.nodes), (Wrong::Regressed { gone: 0, most: 10 }, &[node(0)][..]));
    members[0].was_well = false;
    assert_eq!(step(&watched, &limits(), &members, now(2)), Act::Wait(Waiting::Soak(at(31))), "it was so before");
    members[0] = Member { was_well: true, health: Health::Unclear, ..members[0] };
    assert_eq!(step(&watched, &limits(), &members, now(2)), Act::Wait(Waiting::Soak(at(31))));
    members[0].health = Health::Lost;
    assert_eq!(halted(step(&watched, &limits(), &members, now(2))).what, Wrong::Regressed { gone: 1, most: 10 });
    let just_started = Moment { fresh: true, ..now(40) };
    assert_eq!(step(&watched, &limits(), &members, just_started), Act::Wait(Waiting::Sessions), "it may come back");
}

#[test]
fn who_said_goodbye_has_until_the_end_of_the_soak_to_be_back() {
    let mut members = wave(&[Command::Succeeded; 4]);
    // It was there, and not well: gone is worse.
    members[0] = Member { was_well: false, health: Health::Away, ..members[0] };
    let watched = position(1, 2, Some(1));
    assert_eq!(step(&watched, &limits(), &members, now(30)), Act::Wait(Waiting::Soak(at(31))), "it may be updated");
    let cause = halted(step(&watched, &limits(), &members, now(31)));
    assert_eq!((cause.what, &*cause.nodes), (Wrong::Regressed { gone: 1, most: 10 }, &[node(0)][..]));
    let just_started = Moment { fresh: true, ..now(31) };
    assert_eq!(step(&watched, &limits(), &members, just_started), Act::Wait(Waiting::Sessions));
    members[0].was_there = false;
    assert_eq!(step(&watched, &limits(), &members, now(31)), Act::Next, "it came late, and goes as it likes");
    members[0] = Member { was_there: true, health: Health::Well, ..members[0] };
    assert_eq!(step(&watched, &limits(), &members, now(31)), Act::Next);
}

#[test]
fn whose_engine_does_not_answer_has_until_the_end_of_the_soak() {
    let mut members = wave(&[Command::Succeeded; 4]);
    members[0].health = Health::Blind;
    let watched = position(1, 2, Some(1));
    assert_eq!(step(&watched, &limits(), &members, now(30)), Act::Wait(Waiting::Soak(at(31))), "it may be restarted");
    let cause = halted(step(&watched, &limits(), &members, now(31)));
    assert_eq!((cause.what, &*cause.nodes), (Wrong::Regressed { gone: 0, most: 10 }, &[node(0)][..]));
    members[0].was_well = false;
    assert_eq!(step(&watched, &limits(), &members, now(31)), Act::Next, "it was so before");
}

#[test]
fn who_is_not_there_does_not_hold_a_wave_and_a_wave_of_nobody_shows_nothing() {
    let mut members = wave(&[Command::Succeeded, Command::Queued]);
    members[1] = Member { was_there: false, health: Health::Away, ..members[1] };
    let asking = position(1, 2, None);
    assert_eq!(step(&asking, &limits(), &members, now(59)), Act::Wait(Waiting::Answers(at(60))));
    assert_eq!(step(&asking, &limits(), &members, now(60)), Act::Soak);
    // It joins long after: its own time begins when it is told.
    members[1] = Member { told_at: Some(at(500)), health: Health::Well, ..asked(1, 1, Command::Running) };
    assert!(matches!(step(&position(2, 2, None), &limits(), &members, now(559)), Act::Soak), "no time-out");
    assert_eq!(halted(step(&position(2, 2, None), &limits(), &members, now(560))).wave, 1);
    members[1] = Member { told_at: None, ..asked(1, 1, Command::Expired) };
    assert_eq!(step(&asking, &limits(), &members, now(9_000)), Act::Soak, "never told is no failure");
    members[0] = asked(0, 1, Command::Queued);
    assert_eq!(halted(step(&asking, &limits(), &members, now(60))).what, Wrong::Nobody { cancelled: 0 });
    members[0].accepted = true;
    members[1].accepted = true;
    assert_eq!(step(&asking, &limits(), &members, now(60)), Act::Soak);
    let gone = Member { health: Health::Gone, ..fresh(7, 1) };
    assert_eq!(step(&asking, &limits(), &[gone], now(0)), Act::Skip(vec![node(7)]));
    let skipped = Member { standing: Standing::Skipped, ..gone };
    assert_eq!(step(&asking, &limits(), &[skipped], now(0)), Act::Soak, "a wave that is no more is no reason to halt");
}

#[test]
fn a_wave_of_which_all_was_cancelled_shows_nothing() {
    let asking = position(1, 2, None);
    let halts = |members: &[Member]| halted(step(&asking, &limits(), members, now(1)));
    let mut members = wave(&[Command::Cancelled]);
    assert_eq!(halts(&members).what, Wrong::Nobody { cancelled: 1 });
    members.push(Member { told_at: None, ..asked(1, 1, Command::Expired) });
    let cause = halts(&members);
    assert_eq!((cause.what, &*cause.nodes), (Wrong::Nobody { cancelled: 1 }, &[node(0), node(1)][..]));
    members[0].accepted = true;
    members[1].accepted = true;
    assert_eq!(step(&asking, &limits(), &members, now(1)), Act::Soak, "somebody has let it go on");
    members = wave(&[Command::Cancelled, Command::Succeeded]);
    assert_eq!(step(&asking, &limits(), &members, now(1)), Act::Soak, "one has shown how it goes");
}

#[test]
fn windows_and_the_rate_hold_commands_back_and_nothing_else() {
    let members: Vec<Member> = (0..5).map(|number| fresh(number, 1)).collect();
    // The start is Monday, 00:00 UTC.
    let windowed = Limits { windows: vec!["Mon 01:00-02:00".parse().expect("a window")], ..limits() };
    let (first, hour) = (position(1, 1, None), 3_600);
    assert_eq!(step(&first, &windowed, &members, now(0)), Act::Wait(Waiting::Window(Some(at(hour)))));
    assert!(matches!(step(&first, &windowed, &members, now(hour)), Act::Ask(all) if all.len() == 5));
    let asked = wave(&[Command::Succeeded; 5]);
    assert_eq!(step(&position(1, 1, Some(0)), &windowed, &asked, now(30)), Act::Finish, "no window is needed to watch");

    let slow = Limits { rate: Some(2), ..limits() };
    assert_eq!(step(&first, &slow, &members, now(0)), Act::Ask(vec![node(0), node(1)]));
    let mut members = members;
    for (number, state) in [(0, Command::Succeeded), (1, Command::Running)] {
        members[usize::from(number)] = super::tests::asked(number, 1, state);
    }
    assert_eq!(step(&first, &slow, &members, now(59)), Act::Wait(Waiting::Rate(at(60))));
    members[1].standing = Standing::Asked(Command::Succeeded);
    assert_eq!(step(&first, &slow, &members, now(60)), Act::Ask(vec![node(2), node(3)]));
}

#[test]
fn who_was_away_in_a_window_is_asked_in_the_next_one_and_holds_nobody_up() {
    let (minute, hour, day) = (60, 3_600, 86_400);
    let windowed = Limits { windows: vec!["01:00-02:00".parse().expect("a window")], ..limits() };
    let mut members = vec![asked(0, 1, Command::Succeeded), asked(1, 1, Command::Queued), fresh(2, 2)];
    let own = day + hour + 30 * minute;
    let away = Member { health: Health::Away, was_there: false, ..members[1] };
    members[1] = Member { asked_at: Some(at(hour)), open_until: Some(at(own)), ..away };
    let step = |position: &Position, members: &[Member], seconds| step(position, &windowed, members, now(seconds));
    let within = |seconds| members[1].within(windowed.open_for(now(seconds)), now(seconds));
    assert_eq!(within(hour + minute), Some(Duration::from_secs(59 * minute)), "not beyond the window");
    let rest = within(day + hour + 20 * minute);
    assert_eq!(rest, Some(Duration::from_secs(10 * minute)), "and not beyond its own time");

    members[1].standing = Standing::Asked(Command::Expired);
    let watched = position(1, 2, Some(2 * hour));
    assert_eq!(step(&watched, &members, 2 * hour), Act::Wait(Waiting::Soak(at(2 * hour + 30))));
    assert_eq!(step(&watched, &members, 2 * hour + 30), Act::Next);
    let second = position(2, 2, None);
    assert_eq!(step(&second, &members, 3 * hour), Act::Wait(Waiting::Window(Some(at(day + hour)))));
    assert_eq!(
        step(&second, &members, day + 2 * hour - 9),
        Act::Wait(Waiting::Window(Some(at(2 * day + hour)))),
        "too late"
    );
    assert_eq!(step(&second, &members, day + hour), Act::Ask(vec![node(2)]), "they have different times");
    members[2] = Member { asked_at: Some(at(day + hour)), ..asked(2, 2, Command::Succeeded) };
    assert_eq!(step(&second, &members, day + hour), Act::Ask(vec![node(1)]));
    let last = position(2, 2, Some(2 * hour));
    assert_eq!(step(&last, &members, 3 * hour), Act::Next, "all are through, and one may still join");
    let beyond = position(3, 2, None);
    assert_eq!(step(&beyond, &members, 3 * hour), Act::Wait(Waiting::Away(at(own))));
    members[0].health = Health::Unwell;
    assert_eq!(step(&beyond, &members, 3 * hour), Act::Wait(Waiting::Away(at(own))), "nobody is watched any more");
    assert_eq!(step(&beyond, &members, own), Act::Finish);
    let told = |state| Member { told_at: Some(at(day + hour)), asked_at: Some(at(day + hour)), ..asked(1, 1, state) };
    members[1] = told(Command::Running);
    assert_eq!(step(&beyond, &members, day + hour + 59), Act::Wait(Waiting::Answers(at(day + hour + 60))));
    members[1] = told(Command::Failed);
    assert_eq!(halted(step(&beyond, &members, day + hour + 59)).wave, 1);
    members[1] = told(Command::Succeeded);
    assert_eq!(step(&beyond, &members, day + hour + 59), Act::Finish);
}

#[test]
fn who_is_away_is_waited_for_until_its_own_deadline() {
    let mut members =
        vec![asked(0, 1, Command::Succeeded), asked(1, 1, Command::Queued), asked(2, 2, Command::Succeeded)];
    members[1] = Member { health: Health::Away, was_there: false, open_until: Some(at(3_600)), ..members[1] };
    let (last, beyond) = (position(2, 2, Some(100)), position(3, 2, None));
    assert_eq!(step(&position(1, 2, Some(70)), &limits(), &members, now(100)), Act::Next, "it holds nobody up");
    assert_eq!(step(&last, &limits(), &members, now(130)), Act::Next, "all are through, and one may still join");
    for seconds in [130, 3_599] {
        assert_eq!(step(&beyond, &limits(), &members, now(seconds)), Act::Wait(Waiting::Away(at(3_600))));
    }
    let mut late = members.clone();
    late[1].standing = Standing::Asked(Command::Expired);
    assert_eq!(step(&last, &limits(), &late, now(3_600)), Act::Finish);
    assert_eq!(step(&beyond, &limits(), &late, now(3_600)), Act::Finish);
    members[1].health = Health::Gone;
    assert_eq!(step(&last, &limits(), &members, now(130)), Act::Finish, "it does not come back");
    // It came while the last wave was under way.
    members[1] = Member { told_at: Some(at(125)), health: Health::Well, ..asked(1, 1, Command::Running) };
    assert_eq!(step(&last, &limits(), &members, now(130)), Act::Next);
    assert_eq!(step(&beyond, &limits(), &members, now(130)), Act::Wait(Waiting::Answers(at(185))));
    assert_eq!(halted(step(&beyond, &limits(), &members, now(185))).wave, 1, "what it does is judged");
    members[1].standing = Standing::Asked(Command::Succeeded);
    assert_eq!(step(&beyond, &limits(), &members, now(140)), Act::Finish);
}

#[test]
fn whose_command_was_taken_back_is_asked_before_it_goes_on() {
    let mut members = vec![asked(0, 1, Command::Succeeded), fresh(1, 1), asked(2, 2, Command::Succeeded), fresh(3, 3)];
    members[1].asked_at = Some(at(0));
    let second = position(2, 3, None);
    assert_eq!(step(&second, &limits(), &members, now(9)), Act::Ask(vec![node(1)]), "of a wave before, too");
    members[1].standing = Standing::Asked(Command::Succeeded);
    assert_eq!(step(&second, &limits(), &members, now(9)), Act::Soak);
}

/// What becomes of a node that is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Succeeds,
    Fails,
    Hangs,
    Stopped,
    Away,
    Sickens,
    Leaves,
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        6 => Just(Fate::Succeeds), 1 => Just(Fate::Fails), 1 => Just(Fate::Hangs), 1 => Just(Fate::Stopped),
        1 => Just(Fate::Away), 1 => Just(Fate::Sickens), 1 => Just(Fate::Leaves)
    ]
}

proptest! {
    /// However nodes fare: nobody is asked twice, out of turn or too fast; it comes to an end, and halts only with a cause.
    #[test]
    fn every_rollout_comes_to_an_end_in_order(
        waves in prop::collection::vec(prop::collection::vec(fate(), 1..6), 1..5),
        rate in prop::option::of(1_u32..8),
        most in 0_u8..=60,
        resumes in 0_usize..6,
    ) {
        let limits = Limits { rate, most_failed: most, most_regressed: most, ..limits() };
        let mut members = Vec::new();
        let mut fates = Vec::new();
        for (wave, nodes) in waves.iter().enumerate() {
            for fate in nodes {
                let health = if *fate == Fate::Away { Health::Away } else { Health::Well };
                members.push(Member { health, ..fresh(fates.len() as u8, wave as u32 + 1) });
                fates.push(*fate);
            }
        }
        let mut position = position(1, waves.len() as u32, None);
        let (mut clock, mut resumed) = (0_u64, 0);
        for _ in 0..2_000 {
            let act = step(&position, &limits, &members, now(clock));
            prop_assert_eq!(&act, &step(&position, &limits, &members, now(clock)), "asked again, the same");
            match act {
                Act::Ask(nodes) => {
                    for asked in nodes {
                        let member = members.iter_mut().find(|member| member.node == asked).expect("one of them");
                        prop_assert!(member.standing == Standing::Pending && member.wave <= position.wave);
                        member.standing = Standing::Asked(Command::Queued);
                        (member.asked_at, member.was_there) = (Some(at(clock)), member.health.is_there());
                        member.open_until = Some(at(clock + 100));
                    }
                    let recent = |asked: Timestamp| at(clock).since(asked) < Duration::from_secs(60);
                    let recent = members.iter().filter_map(|member| member.asked_at).filter(|at| recent(*at)).count();
                    prop_assert!(rate.is_none_or(|rate| recent <= rate as usize));
                }
                Act::Skip(_) => prop_assert!(false, "nobody is gone"),
                Act::Soak => position.soaking_since = Some(at(clock)),
                Act::Next => {
                    let left = members.iter().zip(&fates).any(|(member, fate)| {
                        member.wave == position.wave && *fate == Fate::Leaves && !member.accepted
                    });
                    prop_assert!(!left || most > 0, "who left has shown nothing good");
                    let open = members.iter().any(|member| member.wave <= position.wave && member.pending());
                    prop_assert!(!open, "nobody is left behind");
                    let mut wave = members.iter().filter(|member| member.wave == position.wave);
                    let shown = wave.any(|member| member.accepted || !member.cancelled());
                    prop_assert!(shown, "nobody has shown anything");
                    position.wave += 1;
                    position.soaking_since = None;
                }
                Act::Finish => {
                    prop_assert!(members.iter().all(|member| !member.pending() && !member.waits()));
                    return Ok(());
                }
                Act::Halt(cause) => {
                    prop_assert!(fates.iter().any(|fate| *fate != Fate::Succeeds), "all were well: {:?}", cause);
                    prop_assert!(!cause.nodes.is_empty() && cause.nodes.len() <= cause.of);
                    if resumed == resumes {
                        return Ok(());
                    }
                    resumed += 1;
                    for member in members.iter_mut().filter(|member| cause.nodes.contains(&member.node)) {
                        prop_assert!(!member.accepted, "what was accepted does not halt it again");
                        member.accepted = true;
                    }
                    // What nobody was told is taken back.
                    members.iter_mut().filter(|member| member.waits()).for_each(|member| {
                        (member.standing, member.open_until) = (Standing::Pending, None);
                    });
                    let to_ask = members.iter().any(|member| member.wave == position.wave && member.pending());
                    position.soaking_since = position.soaking_since.filter(|_| !to_ask);
                }
                Act::Wait(waiting) => {
                    prop_assert!(!matches!(waiting, Waiting::Person | Waiting::Sessions | Waiting::Window(_)));
                    clock += 1;
                    for (member, fate) in members.iter_mut().zip(&fates) {
                        let Standing::Asked(state) = member.standing else { continue };
                        let next = match (fate, state) {
                            (_, Command::Queued) if member.open_until.is_some_and(|until| until <= at(clock)) => {
                                member.standing = Standing::Asked(Command::Expired);
                                continue;
                            }
                            (Fate::Away, _) => continue,
                            (_, Command::Queued) => Command::Running,
                            (Fate::Succeeds | Fate::Sickens | Fate::Leaves, Command::Running) => Command::Succeeded,
                            (Fate::Fails, Command::Running) => Command::Failed,
                            (Fate::Stopped, Command::Running) => Command::Cancelled,
                            _ => continue,
                        };
                        member.told_at = member.told_at.or(Some(at(clock)));
                        member.standing = Standing::Asked(next);
                        match fate {
                            Fate::Sickens => member.health = Health::Unwell,
                            Fate::Leaves if next == Command::Succeeded => member.health = Health::Away,
                            _ => {}
                        }
                    }
                }
            }
        }
        prop_assert!(false, "it does not come to an end: {:?} {:?}", position, members);
    }
}
