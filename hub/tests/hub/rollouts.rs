//! Rollouts as rows: whenever the hub is killed, nobody is asked twice, and who is not to be asked is not.

mod site;

use std::collections::BTreeSet;
use std::time::Duration;

use hyperfactory_hub::alerts;
use hyperfactory_hub::commands::{Filter, NewRequest};
use hyperfactory_hub::rollouts::{Act, NewRollout, Participant, RolloutError, Standing, State, Verb, Waiting};
use hyperfactory_hub::upkeep::Asked;
use protocol::command::State as Stands;
use protocol::message::{CommandState, EngineState, ServiceHealth};
use serde_json::json;
use store::{on_both_engines, sqlx};
use tokio::task::JoinSet;

use crate::setup::{NOW, acme, seconds};
use site::{MANY, Site, ann};

on_both_engines! {
    async fn it_goes_wave_by_wave_however_often_the_hub_is_killed_and_nobody_is_asked_twice(database: TestDatabase) {
        let site = Site::new(database, 5).await;
        let id = site.start(&[&[0], &[1, 2], &[3, 4]]).await;
        let mut patience = 0;
        loop {
            // Killed at every point of a step: a future that is dropped goes no further.
            for micros in [0, 100, 300, 700, 1_500, 3_000, 6_000] {
                let desk = site.open().await;
                let step = desk.rollouts.step(id, || site.now(), false);
                drop(tokio::time::timeout(Duration::from_micros(micros), step).await);
            }
            // Two hubs at once, each of which sees that a step is due.
            let (one, other) = (site.open().await, site.open().await);
            let (one, other) = tokio::join!(
                one.rollouts.step(id, || site.now(), false),
                other.rollouts.step(id, || site.now(), false)
            );
            one.and(other).expect("a step");
            let asked = site.asked(&site.open().await).await;
            assert!(asked.values().all(|commands| commands.len() == 1), "{asked:?}");
            let (rollout, nodes) = site.shown(id).await;
            for one in &nodes {
                assert!(one.member.pending() || one.member.wave <= rollout.position.wave, "{one:?}");
            }
            if rollout.position.state == State::Done {
                assert!(rollout.ended_at.is_some());
                break;
            }
            site.answer(&site.open().await, CommandState::Succeeded).await;
            site.pass(seconds(10));
            patience += 1;
            assert!(patience < MANY, "{rollout:?}");
        }
        assert_eq!(site.asked(&site.open().await).await.len(), 5);
        assert_eq!(site.actions().await, ["started", "watched", "advanced", "watched", "advanced", "watched", "ended"]);
        let requested = site.world.audited("command.requested").await;
        assert_eq!((requested.len(), &*requested[0].actor), (3, "operator:ann"));
        assert_eq!(requested[0].detail["target"], json!({ "rollout": id, "wave": 3 }));
        assert_eq!(requested[0].detail["why"], json!("a new image"));
        site.world.close().await;
    }

    async fn a_wave_that_gets_unwell_halts_it_the_rest_is_untouched_and_resumed_it_goes_on(database: TestDatabase) {
        let site = Site::new(database, 6).await;
        let id = site.start(&[&[0], &[1, 2, 3], &[4, 5]]).await;
        site.until_it_waits(id).await;
        site.answer(&site.open().await, CommandState::Succeeded).await;
        site.until_it_waits(id).await;
        site.pass(seconds(30));
        site.until_it_waits(id).await;
        site.answer(&site.open().await, CommandState::Succeeded).await;
        site.until_it_waits(id).await;
        assert_eq!(site.state(id).await, (State::Running, 2));
        site.health(site.nodes[2], ServiceHealth::Unhealthy);
        site.pass(seconds(300));
        site.until_it_waits(id).await;
        let (rollout, nodes) = site.shown(id).await;
        assert_eq!((rollout.position.state, rollout.position.wave), (State::Halted, 2));
        assert!(rollout.why.contains("in wave 2, 1 of 3 nodes were well before and are not now"), "{}", rollout.why);
        assert!(rollout.why.contains("plant-2 of acme"), "{}", rollout.why);
        let untouched = |nodes: &[Participant]| nodes.iter().filter(|one| one.member.pending()).count();
        assert_eq!(untouched(&nodes), 2);
        let audited = site.world.audited("rollout.halted").await;
        assert_eq!((audited.len(), audited[0].detail["reason"].as_str()), (1, Some(&*rollout.why)));
        assert_eq!((&*audited[0].actor, audited[0].tenant.as_deref()), ("system", Some("acme")));
        assert!(matches!(site.act(id, Verb::Pause).await, Err(RolloutError::Halted(_))));
        let alerts = async |open| {
            let filter = alerts::Filter { open: Some(open), ..alerts::Filter::default() };
            let listed = site.open().await.alerts.list(&filter).await.expect("a list");
            listed.into_iter().filter(|alert| alert.rule == "rollout.halted").collect::<Vec<_>>()
        };
        let open = alerts(true).await;
        assert_eq!((open.len(), &*open[0].subject, open[0].tenant.clone()), (1, &*format!("rollout/{id}"), Some(acme())));
        assert!(open[0].message.contains(&rollout.why), "{}", open[0].message);

        for _ in 0..2 {
            assert_eq!(site.act(id, Verb::Resume).await.expect("resumed").position.state, State::Running);
        }
        assert_eq!(site.world.audited("rollout.resumed").await.len(), 1, "once");
        assert_eq!((alerts(true).await.len(), alerts(false).await.len()), (0, 1));
        site.until_it_waits(id).await;
        assert_eq!(site.state(id).await, (State::Running, 2), "what was accepted does not halt it, and is watched anew");
        site.health(site.nodes[3], ServiceHealth::Unhealthy);
        site.until_it_waits(id).await;
        assert_eq!(site.state(id).await, (State::Halted, 2), "what gets worse does");
        site.act(id, Verb::Resume).await.expect("resumed");
        site.pass(seconds(30));
        site.until_it_waits(id).await;
        assert_eq!((site.state(id).await, untouched(&site.shown(id).await.1)), ((State::Running, 3), 0));
        site.world.close().await;
    }

    async fn a_service_that_restarts_again_and_again_halts_it_though_it_runs_at_every_look(database: TestDatabase) {
        let site = Site::new(database, 3).await;
        // Of the last it was so before, and nobody's fault now.
        let [loops, once, before] = site.nodes[..] else { panic!("three nodes") };
        site.restarts(before, 3);
        let id = site.start(&[&[0, 1, 2]]).await;
        site.until_it_waits(id).await;
        site.answer(&site.open().await, CommandState::Succeeded).await;
        site.until_it_waits(id).await;
        site.restarts(once, 1);
        assert!(matches!(site.until_it_waits(id).await, Act::Wait(Waiting::Soak(_))), "once is not again and again");
        site.restarts(loops, 3);
        site.until_it_waits(id).await;
        let why = site.shown(id).await.0.why;
        assert!(why.contains("1 of 3 nodes were well before and are not now") && why.ends_with("plant-0 of acme"), "{why}");
        site.world.close().await;
    }

    async fn an_engine_that_does_not_answer_halts_it_though_services_are_well_as_told_last(database: TestDatabase) {
        let site = Site::new(database, 3).await;
        // Of the last it was so before, and nobody's fault now.
        let [dies, restarted, before] = site.nodes[..] else { panic!("three nodes") };
        site.engine(before, EngineState::Unreachable, seconds(60));
        let watched = async |last: Duration| {
            let id = site.start(&[&[0, 1, 2]]).await;
            site.until_it_waits(id).await;
            site.answer(&site.open().await, CommandState::Succeeded).await;
            site.until_it_waits(id).await;
            site.engine(restarted, EngineState::Unreachable, seconds(5));
            assert!(matches!(site.until_it_waits(id).await, Act::Wait(Waiting::Soak(_))), "it may only be restarted");
            site.engine(restarted, EngineState::Connected, seconds(5));
            site.engine(dies, EngineState::PermissionDenied, last);
            id
        };
        let halted = async |id| {
            site.until_it_waits(id).await;
            let rollout = site.shown(id).await.0;
            assert_eq!(rollout.position.state, State::Halted);
            let why = rollout.why;
            assert!(why.contains("1 of 3 nodes were well before and are not now") && why.ends_with("plant-0 of acme"), "{why}");
        };
        let id = watched(seconds(60)).await;
        halted(id).await;
        site.engine(dies, EngineState::Connected, seconds(5));
        // Watched for less time than the alert takes.
        let id = watched(seconds(5)).await;
        site.until_it_waits(id).await;
        assert_eq!(site.state(id).await.0, State::Running);
        site.pass(seconds(30));
        halted(id).await;
        site.world.close().await;
    }

    async fn who_says_goodbye_after_it_was_asked_and_does_not_come_back_halts_it(database: TestDatabase) {
        let mut site = Site::new(database, 4).await;
        let [back, gone, late] = [site.nodes[1], site.nodes[2], site.nodes[3]];
        site.lose(late);
        let id = site.start(&[&[0, 1, 2, 3]]).await;
        site.until_it_waits(id).await;
        site.connect(late);
        site.answer(&site.open().await, CommandState::Succeeded).await;
        site.until_it_waits(id).await;
        for node in [back, gone, late] {
            site.leave(node);
        }
        assert!(matches!(site.until_it_waits(id).await, Act::Wait(Waiting::Soak(_))), "they may be back in a moment");
        site.connect(back);
        site.pass(seconds(30));
        site.until_it_waits(id).await;
        let (rollout, nodes) = site.shown(id).await;
        assert_eq!(rollout.position.state, State::Halted);
        assert!(rollout.why.contains("1 of 4 nodes were there before and are gone; that is more than 20 %: plant-2"), "{}", rollout.why);
        let was_there = |node| nodes.iter().any(|one| one.member.node == node && one.member.was_there);
        assert!(was_there(gone) && !was_there(late), "who came late is not missed");
        site.world.close().await;
    }

    async fn it_can_be_held_resumed_and_given_up_at_every_step(database: TestDatabase) {
        // How many steps before it is given up: each time another rollout, of a hub that ends after each step.
        let site = Site::new(database, 4).await;
        for steps in 0..9 {
            let id = site.start(&[&[0], &[1, 2], &[3]]).await;
            for step in 0..steps {
                site.act(id, Verb::Pause).await.expect("held");
                let before = site.shown(id).await;
                let held = site.open().await.rollouts.step(id, || site.now(), false).await.expect("a step");
                assert!(matches!(held, Act::Wait(_)), "held, it does nothing: {held:?}");
                assert_eq!(site.shown(id).await.1, before.1);
                site.act(id, Verb::Resume).await.expect("resumed");
                site.open().await.rollouts.step(id, || site.now(), false).await.expect("a step");
                if step % 2 == 1 {
                    site.answer(&site.open().await, CommandState::Succeeded).await;
                    site.pass(seconds(30));
                }
            }
            let (before, nodes) = site.shown(id).await;
            let queued = nodes.iter().filter(|one| one.member.waits()).count();
            assert_eq!(before.position.state, State::Running, "{steps}: {}", before.why);
            for _ in 0..2 {
                let given_up = site.act(id, Verb::Abort).await.expect("given up");
                assert_eq!(given_up.position.state, State::Aborted);
            }
            let (_, after) = site.shown(id).await;
            for (one, was) in after.iter().zip(&nodes) {
                let expected = if was.member.waits() { Standing::Asked(Stands::Cancelled) } else { was.member.standing };
                assert_eq!(one.member.standing, expected, "what nobody was told is taken back, and nothing else");
            }
            let audited = site.world.audited("rollout.aborted").await;
            assert_eq!((audited.len(), &audited[0].detail["taken_back"]), (steps + 1, &json!(queued)));
            site.pass(seconds(600));
            site.answer(&site.open().await, CommandState::Succeeded).await;
            site.until_it_waits(id).await;
            assert_eq!(site.shown(id).await.1.iter().filter(|one| one.member.pending()).count(), after.iter().filter(|one| one.member.pending()).count());
            assert!(matches!(site.act(id, Verb::Resume).await, Err(RolloutError::Over { .. })));
        }
        site.world.close().await;
    }

    async fn who_is_away_joins_later_under_its_own_deadline_and_who_is_gone_is_left_out(database: TestDatabase) {
        let mut site = Site::new(database, 4).await;
        let (away, gone) = (site.nodes[1], site.nodes[3]);
        site.lose(away);
        let id = site.start(&[&[0, 1], &[2, 3]]).await;
        site.until_it_waits(id).await;
        site.answer(&site.open().await, CommandState::Succeeded).await;
        site.pass(seconds(59));
        site.until_it_waits(id).await;
        assert_eq!(site.shown(id).await.0.position.soaking_since, None, "it has its time to come");
        site.pass(seconds(1));
        site.until_it_waits(id).await;
        site.world.fleet.revoked(gone, NOW);
        site.pass(seconds(30));
        site.until_it_waits(id).await;
        assert_eq!(site.state(id).await, (State::Running, 2), "and does not hold the wave for ever");
        site.pass(seconds(2_000));
        site.connect(away);
        site.answer(&site.open().await, CommandState::Succeeded).await;
        site.until_it_waits(id).await;
        site.pass(seconds(30));
        site.until_it_waits(id).await;
        let (rollout, nodes) = site.shown(id).await;
        assert_eq!(rollout.position.state, State::Done, "{}", rollout.why);
        let standing = |node| nodes.iter().find(|one| one.member.node == node).expect("there").member.standing;
        assert_eq!((standing(away), standing(gone)), (Standing::Asked(Stands::Succeeded), Standing::Skipped));
        assert_eq!(site.world.audited("rollout.left_out").await.len(), 1);
        site.world.close().await;
    }

    async fn until_nobody_may_join_any_more_it_is_not_done_and_can_be_given_up(database: TestDatabase) {
        let mut site = Site::new(database, 2).await;
        let away = site.nodes[1];
        site.lose(away);
        let through = async |id| {
            for wait in [0, 0, 60, 30] {
                site.pass(seconds(wait));
                site.until_it_waits(id).await;
                site.answer(&site.open().await, CommandState::Succeeded).await;
            }
            assert!(matches!(site.until_it_waits(id).await, Act::Wait(Waiting::Away(_))));
            assert_eq!(site.state(id).await, (State::Running, 2), "past the last wave");
        };
        let standing = async |id| site.shown(id).await.1[1].member.standing;
        let id = site.start(&[&[0, 1]]).await;
        through(id).await;
        site.act(id, Verb::Abort).await.expect("given up");
        assert_eq!(standing(id).await, Standing::Asked(Stands::Cancelled), "its command is taken back");
        let id = site.start(&[&[0, 1]]).await;
        through(id).await;
        site.pass(seconds(3_600));
        site.open().await.commands.judge(site.now(), true).await.expect("judged");
        site.until_it_waits(id).await;
        assert_eq!((site.state(id).await.0, standing(id).await), (State::Done, Standing::Asked(Stands::Expired)));
        site.world.close().await;
    }

    async fn one_that_halts_takes_back_what_nobody_was_told_and_resumed_it_asks_anew(database: TestDatabase) {
        let mut site = Site::new(database, 6).await;
        let away = [site.nodes[1], site.nodes[4], site.nodes[5]];
        away.iter().for_each(|node| site.lose(*node));
        let id = site.start(&[&[0, 1], &[2, 3, 4, 5]]).await;
        site.until_it_waits(id).await;
        site.answer(&site.open().await, CommandState::Succeeded).await;
        for wait in [60, 30] {
            site.pass(seconds(wait));
            site.until_it_waits(id).await;
        }
        assert_eq!(site.state(id).await, (State::Running, 2));
        site.answer(&site.open().await, CommandState::Failed).await;
        site.until_it_waits(id).await;
        let (rollout, nodes) = site.shown(id).await;
        assert_eq!(rollout.position.state, State::Halted);
        let said = "; the commands of 3 nodes that were not told yet are taken back";
        assert!(rollout.why.starts_with("in wave 2, 2 of 4 nodes failed") && rollout.why.ends_with(said), "{}", rollout.why);
        let of = |nodes: &[Participant], node| nodes.iter().find(|one| one.member.node == node).expect("there").clone();
        for node in away {
            let one = of(&nodes, node);
            assert!(one.member.pending() && one.command.is_none(), "not asked: {one:?}");
        }
        let halted = site.world.audited("rollout.halted").await;
        assert_eq!((halted.len(), &halted[0].detail["taken_back"]), (1, &json!(3)));
        let cancelled = site.world.audited("command.cancelled").await;
        assert_eq!((cancelled.len(), &*cancelled[0].actor, &cancelled[0].detail["nodes"]), (1, "system", &json!(3)));

        // Those that come back now are told nothing.
        away.iter().for_each(|node| site.connect(*node));
        let desk = site.open().await;
        for node in away {
            site.health(node, ServiceHealth::Healthy);
            assert!(desk.commands.due(node, 32, site.now()).await.expect("an answer").is_empty());
        }
        site.act(id, Verb::Resume).await.expect("resumed");
        site.until_it_waits(id).await;
        for (node, commands) in site.asked(&desk).await {
            assert_eq!(commands.len(), if away.contains(&node) { 2 } else { 1 }, "asked anew, and nobody else");
        }
        assert!(of(&site.shown(id).await.1, away[0]).member.was_well, "as it was when it was asked anew");
        site.answer(&desk, CommandState::Succeeded).await;
        site.until_it_waits(id).await;
        site.pass(seconds(30));
        site.until_it_waits(id).await;
        let (rollout, nodes) = site.shown(id).await;
        assert_eq!(rollout.position.state, State::Done, "{}", rollout.why);
        assert!(away.iter().all(|node| of(&nodes, *node).member.standing == Standing::Asked(Stands::Succeeded)));
        site.world.close().await;
    }

    async fn that_nobody_was_there_can_be_accepted_and_what_they_do_later_is_judged(database: TestDatabase) {
        let mut site = Site::new(database, 2).await;
        let away = site.nodes[0];
        site.lose(away);
        let id = site.start(&[&[0], &[1]]).await;
        site.until_it_waits(id).await;
        site.pass(seconds(60));
        site.until_it_waits(id).await;
        let why = site.shown(id).await.0.why;
        assert!(why.contains("none of 1 node was there") && why.ends_with("the command of 1 node that was not told yet is taken back"), "{why}");
        site.act(id, Verb::Resume).await.expect("resumed");
        for wait in [0, 60, 30] {
            site.pass(seconds(wait));
            site.until_it_waits(id).await;
        }
        assert_eq!(site.state(id).await, (State::Running, 2), "it goes on without them");
        site.answer(&site.open().await, CommandState::Succeeded).await;
        site.connect(away);
        site.answer(&site.open().await, CommandState::Failed).await;
        site.until_it_waits(id).await;
        let why = site.shown(id).await.0.why;
        assert!(why.starts_with("in wave 1, 1 of 1 node failed"), "{why}");
        site.world.close().await;
    }

    async fn a_canary_whose_command_is_cancelled_halts_it_and_that_can_be_accepted(database: TestDatabase) {
        let site = Site::new(database, 2).await;
        let id = site.start(&[&[0], &[1]]).await;
        site.until_it_waits(id).await;
        site.answer(&site.open().await, CommandState::Cancelled).await;
        site.until_it_waits(id).await;
        let (rollout, nodes) = site.shown(id).await;
        assert_eq!((rollout.position.state, rollout.position.wave), (State::Halted, 1));
        let said = "in wave 1, none of 1 node has shown how it goes, 1 of them because they had the command cancelled: plant-0";
        assert!(rollout.why.starts_with(said), "{}", rollout.why);
        assert!(nodes[1].member.pending(), "the rest is untouched");
        site.act(id, Verb::Resume).await.expect("resumed");
        site.until_it_waits(id).await;
        site.pass(seconds(30));
        site.until_it_waits(id).await;
        assert_eq!(site.state(id).await, (State::Running, 2), "it goes on without it");
        site.world.close().await;
    }

    async fn a_wall_clock_that_is_set_gives_nobody_more_or_less_time(database: TestDatabase) {
        let mut site = Site::new(database, 4).await;
        for (days, hangs, late) in [(-1, 0, 1), (1, 2, 3)] {
            let joins = site.nodes[late];
            site.lose(joins);
            let id = site.start(&[&[hangs, late]]).await;
            site.until_it_waits(id).await;
            site.answer(&site.open().await, CommandState::Running).await;
            site.until_it_waits(id).await;
            site.set(days);
            site.pass(seconds(59));
            site.until_it_waits(id).await;
            assert_eq!(site.state(id).await.0, State::Running, "{days}: it has its time");
            site.pass(seconds(1));
            site.until_it_waits(id).await;
            let why = site.shown(id).await.0.why;
            assert!(why.contains("1 of them because they did not come to an end in time"), "{days}: {why}");
            site.act(id, Verb::Resume).await.expect("resumed");
            site.until_it_waits(id).await;
            site.pass(seconds(2_000));
            site.connect(joins);
            site.answer(&site.open().await, CommandState::Running).await;
            site.set(days);
            for wait in [0, 59] {
                site.pass(seconds(wait));
                site.until_it_waits(id).await;
                assert_eq!(site.state(id).await.0, State::Running, "{days}: its time began when it was told");
            }
            site.pass(seconds(1));
            site.until_it_waits(id).await;
            assert_eq!(site.state(id).await.0, State::Halted, "{days}: and has an end");
            site.act(id, Verb::Abort).await.expect("given up");
        }
        site.world.close().await;
    }

    async fn who_was_away_in_a_window_starts_nothing_until_the_next_one(database: TestDatabase) {
        // Now is 14:13:20.
        let (hour, window) = (3_600, "14:00-15:00 UTC");
        let mut site = Site::new(database, 4).await;
        let (away, never) = (site.nodes[1], site.nodes[3]);
        site.lose(away);
        site.lose(never);
        let mut new = site.new_rollout(&[&[0, 1], &[2, 3]]);
        new.limits.windows = vec![window.parse().expect("a window")];
        new.command.valid_for = seconds(30 * hour);
        let id = site.open().await.rollouts.start(new, &ann(), NOW).await.expect("started").id;
        let desk = site.open().await;
        for wait in [0, 60, 30, 0, 60] {
            site.pass(seconds(wait));
            site.until_it_waits(id).await;
            site.answer(&desk, CommandState::Succeeded).await;
        }
        let closes = NOW.plus(seconds(hour - 800));
        for command in desk.commands.list(&Filter { limit: 100, ..Filter::default() }, site.now()).await.expect("a list") {
            assert_eq!(command.deadline, closes, "by the end of the window: {command:?}");
        }
        site.pass(seconds(hour - 800 - 150));
        desk.commands.judge(site.now(), true).await.expect("judged");
        assert!(matches!(site.until_it_waits(id).await, Act::Wait(Waiting::Away(_))));
        let (rollout, nodes) = site.shown(id).await;
        assert_eq!((rollout.position.state, rollout.position.wave), (State::Running, 3), "{}", rollout.why);
        let moment = desk.rollouts.moment(site.now(), false);
        assert_eq!(nodes.iter().filter(|one| one.member.missed(moment)).count(), 2);
        // It is back while none is open.
        site.connect(away);
        site.until_it_waits(id).await;
        assert!(desk.commands.due(away, 32, site.now()).await.expect("an answer").is_empty());
        site.pass(seconds(23 * hour));
        site.until_it_waits(id).await;
        site.answer(&desk, CommandState::Succeeded).await;
        site.until_it_waits(id).await;
        let standing = |nodes: &[Participant], node| nodes.iter().find(|one| one.member.node == node).expect("there").member.standing;
        assert_eq!(standing(&site.shown(id).await.1, away), Standing::Asked(Stands::Succeeded));
        // The other one's own time ends before the third.
        site.pass(seconds(7 * hour));
        desk.commands.judge(site.now(), true).await.expect("judged");
        site.until_it_waits(id).await;
        let (rollout, nodes) = site.shown(id).await;
        assert_eq!((rollout.position.state, standing(&nodes, never)), (State::Done, Standing::Asked(Stands::Expired)));
        let asked = site.asked(&desk).await;
        assert_eq!((asked[&away].len(), asked[&never].len(), asked[&site.nodes[0]].len()), (2, 2, 1));
        site.world.close().await;
    }

    async fn no_command_may_start_after_its_window_however_long_a_look_takes(database: TestDatabase) {
        // Now is 14:13:20.
        let site = Site::new(database, 6).await;
        let desk = site.open().await;
        for node in 0..6 {
            let mut new = site.new_rollout(&[&[node]]);
            new.limits.windows = vec!["14:00-14:15 UTC".parse().expect("a window")];
            desk.rollouts.start(new, &ann(), NOW).await.expect("started");
        }
        site.slow(seconds(6));
        desk.rollouts.look(|| site.now(), false).await.expect("looked");
        site.slow(seconds(0));
        let closes = NOW.plus(seconds(100));
        let commands = desk.commands.list(&Filter { limit: 100, ..Filter::default() }, site.now()).await.expect("a list");
        assert!((1..6).contains(&commands.len()), "the window has closed meanwhile: {commands:?}");
        for command in commands {
            assert!(command.deadline <= closes, "{command:?}");
        }
        site.world.close().await;
    }

    async fn failures_halt_it_at_once_and_one_key_starts_it_once(database: TestDatabase) {
        let site = Site::new(database, 3).await;
        let keyed = || {
            let new = site.new_rollout(&[&[0, 1], &[2]]);
            NewRollout { command: NewRequest { key: Some("k".into()), ..new.command.clone() }, ..new }
        };
        let id = site.open().await.rollouts.start(keyed(), &ann(), NOW).await.expect("started").id;
        assert_eq!(site.open().await.rollouts.start(keyed(), &ann(), NOW).await.expect("the same").id, id);
        let mut other = keyed();
        other.command.fingerprint = vec![2];
        assert!(matches!(site.open().await.rollouts.start(other, &ann(), NOW).await, Err(RolloutError::Request(_))));
        site.until_it_waits(id).await;
        site.answer(&site.open().await, CommandState::Failed).await;
        site.until_it_waits(id).await;
        let (rollout, nodes) = site.shown(id).await;
        assert_eq!(rollout.position.state, State::Halted);
        assert!(rollout.why.starts_with("in wave 1, 2 of 2 nodes failed; that is more than"), "{}", rollout.why);
        assert_eq!(nodes.iter().filter(|one| one.member.pending()).count(), 1);
        assert_eq!(site.open().await.rollouts.list(None, 10).await.expect("a list").len(), 1);
        site.world.close().await;
    }

    async fn one_key_starts_it_once_also_for_those_who_come_at_once(database: TestDatabase) {
        let site = Site::new(database, 1).await;
        let rollouts = site.open().await.rollouts;
        let mut starting = JoinSet::new();
        for _ in 0..6 {
            let (rollouts, new) = (rollouts.clone(), site.new_rollout(&[&[0]]));
            let new = NewRollout { command: NewRequest { key: Some("k".into()), ..new.command.clone() }, ..new };
            starting.spawn(async move { rollouts.start(new, &ann(), NOW).await.expect("started").id });
        }
        let started: BTreeSet<i64> = starting.join_all().await.into_iter().collect();
        assert_eq!((started.len(), site.world.audited("rollout.started").await.len()), (1, 1));
        site.world.close().await;
    }

    async fn what_has_ended_goes_when_its_time_is_over_and_what_is_open_stays(database: TestDatabase) {
        let site = Site::new(database, 2).await;
        let (ended, open) = (site.start(&[&[0]]).await, site.start(&[&[1]]).await);
        site.until_it_waits(ended).await;
        let desk = site.open().await;
        site.answer(&desk, CommandState::Succeeded).await;
        site.act(ended, Verb::Abort).await.expect("given up");
        site.until_it_waits(open).await;
        let counts = async || {
            let mut counts = Vec::new();
            for table in ["rollouts", "rollout_nodes", "commands", "command_requests"] {
                let sql = sqlx::AssertSqlSafe(format!("SELECT COUNT(*) FROM {table}"));
                counts.push(sqlx::query_scalar::<_, i64>(sql).fetch_one(site.world.database.reader()).await.expect("a count"));
            }
            counts
        };
        assert_eq!(counts().await, [2, 2, 2, 2]);
        let upkeep = Asked::new(site.world.database.clone(), seconds(90 * 86_400));
        upkeep.run_once(NOW.plus(seconds(90 * 86_400))).await.expect("looked");
        assert_eq!(counts().await, [2, 2, 2, 2], "not a moment too early");
        upkeep.run_once(NOW.plus(seconds(90 * 86_400 + 60))).await.expect("deleted");
        assert_eq!(counts().await, [1, 1, 1, 1]);
        assert!(matches!(site.open().await.rollouts.get(ended).await, Err(RolloutError::Unknown(_))));
        assert_eq!(site.state(open).await.0, State::Running);
        assert_eq!(site.asked(&desk).await.len(), 1, "its command is under way");
        site.world.close().await;
    }
}
