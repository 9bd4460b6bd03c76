//! Stories of nodes, told in seconds: what opens, what closes, and what must do neither.

mod bridges;

use protocol::message::{
    ClockReport, Engine, EngineState, ServiceHealth, ServiceKey, ServiceState, SpoolFault, SpoolStatus,
};
use protocol::{NodeKind, SessionId};

use super::*;
use crate::telemetry::state::{Certificate, Member, Presence, Services};

/// One node and its evaluator; every step is a second of the story.
struct Story {
    evaluator: Evaluator,
    view: NodeView,
    log: Vec<(u64, &'static str, &'static str, String)>,
    now: u64,
}

fn at(second: u64) -> Timestamp {
    Timestamp::from_millis(1_790_000_000_000).plus(Duration::from_secs(second))
}

impl Story {
    fn new() -> Self {
        let member = Member {
            node: NodeId::new(at(0), [1; 10]),
            tenant: "acme".parse().expect("a tenant"),
            kind: NodeKind::Agent,
            name: "plant-1".into(),
            enrolled_at: at(0),
        };
        let mut story = Self {
            evaluator: Evaluator::new(Policy::default(), at(0)),
            view: NodeView::new(member),
            log: Vec::new(),
            now: 0,
        };
        story.online(0);
        story
    }

    fn online(&mut self, second: u64) {
        self.until(second);
        let remote = "192.0.2.7:1".parse().expect("an address");
        self.view.presence = Presence::Online { since: at(second), remote };
        self.view.session = Some(SessionId::new(at(second), [2; 10]));
        self.look();
    }

    fn lost(&mut self, second: u64) {
        self.until(second);
        self.view.presence = Presence::Lost { since: at(second) };
        self.look();
    }

    /// Changes the node at `second`.
    fn change(&mut self, second: u64, change: impl FnOnce(&mut NodeView)) {
        self.until(second);
        change(&mut self.view);
        self.look();
    }

    /// Lets time pass; the evaluator is asked when it wants to be, as the task does.
    fn until(&mut self, second: u64) {
        while self.now < second {
            self.now += 1;
            if !self.evaluator.due(at(self.now)).is_empty() {
                self.look();
            }
        }
    }

    fn look(&mut self) {
        for change in self.evaluator.observe(&self.view, at(self.now)) {
            let (what, finding) = match change {
                Change::Opened(finding) => ("opened", finding),
                Change::Closed(finding) => ("closed", finding),
            };
            self.log.push((self.now, what, finding.rule.as_str(), finding.subject));
        }
    }

    #[track_caller]
    fn tells(&self, expected: &[(u64, &str, &str)]) {
        let log: Vec<_> = self.log.iter().map(|(second, what, rule, _)| (*second, *what, *rule)).collect();
        assert_eq!(log, expected);
    }
}

#[derive(Clone)]
struct Container {
    id: &'static str,
    state: ServiceState,
    health: ServiceHealth,
    restarts: u32,
    exit: Option<i32>,
    oom: bool,
}

const WEB: Container = Container {
    id: "first",
    state: ServiceState::Running,
    health: ServiceHealth::Healthy,
    restarts: 0,
    exit: None,
    oom: false,
};

fn runs(container: Container) -> impl FnOnce(&mut NodeView) {
    move |view| {
        let key = ServiceKey { stack: "shop".into(), service: "web".into(), number: 1 };
        view.services = Arc::new(Services::new(vec![Service {
            key: Some(key),
            container_id: container.id.into(),
            state: container.state.into(),
            health: container.health.into(),
            restart_count: container.restarts,
            exit_code: container.exit,
            oom_killed: container.oom,
            ..Service::default()
        }]));
    }
}

fn sick(id: &'static str) -> Container {
    Container { id, health: ServiceHealth::Unhealthy, ..WEB }
}

#[test]
fn a_node_is_lost_after_half_a_minute_and_back_after_a_while() {
    let mut story = Story::new();
    story.lost(100);
    story.online(200);
    story.until(300);
    story.tells(&[(130, "opened", "node.lost"), (215, "closed", "node.lost")]);
}

#[test]
fn a_node_that_reconnects_in_time_is_no_alert() {
    let mut story = Story::new();
    for second in [10, 60, 110] {
        story.lost(second);
        story.online(second + 20);
    }
    story.until(300);
    story.tells(&[]);
}

#[test]
fn a_node_that_comes_and_goes_is_one_alert() {
    let mut story = Story::new();
    story.lost(10);
    for second in [50, 70, 90] {
        story.online(second);
        story.lost(second + 10);
    }
    story.online(120);
    story.until(300);
    story.tells(&[(40, "opened", "node.lost"), (135, "closed", "node.lost")]);
}

#[test]
fn a_node_that_says_goodbye_is_no_alert() {
    let mut story = Story::new();
    story.change(10, |view| view.presence = Presence::Left { since: at(10), reason: "update".into() });
    story.until(10_000);
    story.tells(&[]);
}

#[test]
fn after_a_start_of_the_hub_every_node_has_its_time_to_come_back() {
    let mut story = Story::new();
    story.evaluator = Evaluator::new(Policy::default(), at(1000));
    story.now = 1000;
    story.view.presence = Presence::Lost { since: at(10) };
    story.look();
    story.until(1029);
    story.tells(&[]);
    story.until(1030);
    story.tells(&[(1030, "opened", "node.lost")]);
}

#[test]
fn a_hub_that_started_with_its_clock_ahead_sees_who_is_lost() {
    let mut story = Story::new();
    story.evaluator = Evaluator::new(Policy::default(), at(3600));
    story.lost(10);
    story.until(100);
    story.tells(&[(40, "opened", "node.lost")]);
}

#[test]
fn a_clock_that_is_set_back_makes_nobody_wait_for_it() {
    let mut story = Story::new();
    story.lost(7200);
    story.now = 100;
    story.until(140);
    story.tells(&[(131, "opened", "node.lost")]);
    story.online(10_000);
    story.now = 200;
    story.until(240);
    story.tells(&[(131, "opened", "node.lost"), (216, "closed", "node.lost")]);
}

#[test]
fn what_restarts_or_is_lost_around_a_clock_that_is_set_back_is_over_in_its_time() {
    let lost = |lost_batches| {
        move |view: &mut NodeView| {
            Arc::make_mut(&mut view.status).spool = Some(SpoolStatus { lost_batches, ..SpoolStatus::default() });
        }
    };
    let mut story = Story::new();
    story.change(7_000, runs(WEB));
    story.change(7_001, lost(0));
    story.change(7_100, lost(1));
    story.change(7_110, runs(Container { restarts: 1, ..WEB }));
    story.now = 100;
    story.change(110, runs(Container { restarts: 2, ..WEB }));
    story.change(120, runs(Container { restarts: 3, ..WEB }));
    story.until(2_000);
    story.tells(&[
        (7_100, "opened", "spool.loss"),
        (120, "opened", "service.restarting"),
        (240, "closed", "service.restarting"),
        (701, "closed", "spool.loss"),
    ]);
}

#[test]
fn a_service_is_unhealthy_after_half_a_minute() {
    let mut story = Story::new();
    story.change(1, runs(WEB));
    story.change(10, runs(sick("first")));
    story.change(25, runs(WEB));
    story.change(30, runs(sick("first")));
    story.change(100, runs(WEB));
    story.change(110, runs(sick("first")));
    story.change(120, runs(WEB));
    story.until(300);
    story.tells(&[(60, "opened", "service.unhealthy"), (150, "closed", "service.unhealthy")]);
    assert_eq!(story.log[0].3, "shop/web/1");
}

#[test]
fn a_deployment_raises_no_alert() {
    let mut story = Story::new();
    story.change(1, runs(WEB));
    // Unhealthy for 20 s, then replaced; the new one needs its time, and is sick for 20 s at first.
    story.change(10, runs(sick("first")));
    story.change(30, runs(Container { id: "first", state: ServiceState::Exited, exit: Some(1), ..WEB }));
    story.change(31, |view| view.services = Arc::default());
    story.change(33, runs(Container { id: "second", state: ServiceState::Created, ..WEB }));
    story.change(34, runs(Container { id: "second", health: ServiceHealth::Starting, ..WEB }));
    story.change(80, runs(sick("second")));
    story.change(100, runs(Container { id: "second", ..WEB }));
    story.until(300);
    story.tells(&[]);
}

#[test]
fn a_new_container_is_not_blamed_for_the_old_ones_time() {
    let mut story = Story::new();
    story.change(1, runs(WEB));
    story.change(10, runs(sick("first")));
    story.change(35, runs(sick("second")));
    story.until(64);
    story.tells(&[]);
    story.until(65);
    story.tells(&[(65, "opened", "service.unhealthy")]);
}

#[test]
fn an_open_alert_waits_while_the_service_starts() {
    let mut story = Story::new();
    story.change(1, runs(sick("first")));
    // Started over again and again, starting each time, well at none: one alert.
    for second in [40, 80, 120] {
        story.change(second, runs(Container { health: ServiceHealth::Starting, ..WEB }));
        story.change(second + 35, runs(sick("first")));
    }
    story.change(200, |view| view.services = Arc::default());
    story.until(300);
    story.tells(&[(31, "opened", "service.unhealthy"), (230, "closed", "service.unhealthy")]);
}

#[test]
fn three_restarts_in_two_minutes_are_a_loop() {
    let mut story = Story::new();
    story.change(1, runs(Container { restarts: 7, ..WEB }));
    story.change(10, runs(Container { restarts: 8, ..WEB }));
    story.change(60, runs(Container { restarts: 9, ..WEB }));
    story.change(100, runs(Container { restarts: 10, state: ServiceState::Restarting, ..WEB }));
    // Docker backs off to a minute: still the same alert.
    story.change(160, runs(Container { restarts: 11, ..WEB }));
    story.change(220, runs(Container { restarts: 12, ..WEB }));
    story.until(600);
    story.tells(&[(100, "opened", "service.restarting"), (340, "closed", "service.restarting")]);
}

#[test]
fn restarts_far_apart_or_of_another_container_are_no_loop() {
    let mut story = Story::new();
    for (second, restarts) in [(1, 0), (70, 1), (140, 2), (210, 3)] {
        story.change(second, runs(Container { restarts, ..WEB }));
    }
    story.change(240, runs(Container { id: "second", restarts: 0, ..WEB }));
    story.change(241, runs(Container { id: "third", restarts: 5, ..WEB }));
    story.change(242, runs(Container { id: "third", restarts: 6, ..WEB }));
    // While nobody watched, it restarted often: nobody knows when.
    story.lost(250);
    story.change(255, runs(Container { id: "third", restarts: 60, ..WEB }));
    story.online(260);
    story.until(500);
    story.tells(&[]);
}

#[test]
fn an_error_ends_in_an_alert_and_a_stop_does_not() {
    let ended = |exit, oom| Container { state: ServiceState::Exited, exit: Some(exit), oom, ..WEB };
    for (exit, oom, alert) in
        [(0, false, false), (143, false, false), (137, false, false), (137, true, true), (1, false, true)]
    {
        let mut story = Story::new();
        story.change(1, runs(WEB));
        story.change(10, runs(ended(exit, oom)));
        story.until(100);
        let expected: &[_] = if alert { &[(40, "opened", "service.failed")] } else { &[] };
        story.tells(expected);
    }
}

#[test]
fn what_a_lost_node_last_said_of_its_services_stands() {
    let mut story = Story::new();
    story.change(1, runs(sick("first")));
    story.lost(50);
    story.online(400);
    story.change(401, runs(WEB));
    story.until(600);
    story.tells(&[
        (31, "opened", "service.unhealthy"),
        (80, "opened", "node.lost"),
        (415, "closed", "node.lost"),
        (431, "closed", "service.unhealthy"),
    ]);
}

#[test]
fn the_next_start_of_the_hub_takes_a_loop_over() {
    let mut story = Story::new();
    let node = story.view.node;
    story.evaluator = Evaluator::new(Policy::default(), at(0));
    story.evaluator.restore(node, Rule::ServiceRestarting, "shop/web/1", Level::Critical, "it restarted 3 times");
    assert_eq!(story.evaluator.attention(node).level, Level::Critical);
    story.change(1, runs(Container { restarts: 9, ..WEB }));
    // The evaluator remembers no restart yet: it must not call that well.
    story.change(100, runs(Container { restarts: 10, ..WEB }));
    story.until(600);
    story.tells(&[(220, "closed", "service.restarting")]);
}

#[test]
fn the_engine_may_restart() {
    let engine = |state: EngineState| {
        move |view: &mut NodeView| {
            view.engine = Arc::new(Engine { state: state.into(), ..Engine::default() });
        }
    };
    let mut story = Story::new();
    story.change(10, engine(EngineState::Unreachable));
    story.change(30, engine(EngineState::Connected));
    story.change(50, engine(EngineState::Unreachable));
    story.change(100, engine(EngineState::Connected));
    story.until(200);
    story.change(200, engine(EngineState::Absent));
    story.until(400);
    story.tells(&[(80, "opened", "engine.unreachable"), (130, "closed", "engine.unreachable")]);
}

#[test]
fn a_clock_is_off_beyond_doubt_or_not_at_all() {
    let clock = |offset_ms, delay_ms| {
        move |view: &mut NodeView| Arc::make_mut(&mut view.status).clock = Some(ClockReport { offset_ms, delay_ms })
    };
    let mut story = Story::new();
    story.change(10, clock(1900, 10));
    story.change(20, clock(-2900, 2000));
    story.change(30, clock(-4000, 10));
    story.change(40, clock(1500, 10));
    story.change(50, clock(2500, 10));
    story.change(60, clock(300, 10));
    story.tells(&[(30, "opened", "clock.skew"), (60, "closed", "clock.skew")]);
}

#[test]
fn a_loss_is_shown_for_a_while_and_a_fault_while_it_lasts() {
    let spool = |lost_batches, fault: SpoolFault| {
        move |view: &mut NodeView| {
            let spool = SpoolStatus { lost_batches, fault: fault.into(), ..SpoolStatus::default() };
            Arc::make_mut(&mut view.status).spool = Some(spool);
        }
    };
    let mut story = Story::new();
    story.change(10, spool(40, SpoolFault::Unspecified));
    story.tells(&[]);
    story.change(20, spool(44, SpoolFault::DiskFull));
    story.change(30, spool(44, SpoolFault::Unspecified));
    story.until(1000);
    story.tells(&[
        (20, "opened", "spool.fault"),
        (20, "opened", "spool.loss"),
        (30, "closed", "spool.fault"),
        (620, "closed", "spool.loss"),
    ]);
}

/// An agent's certificate of 7 days that ends at `second`.
fn ends(second: u64) -> impl FnOnce(&mut NodeView) {
    certified(at(second).minus(Duration::from_secs(7 * 86_400)), at(second))
}

fn certified(issued_at: Timestamp, not_after: Timestamp) -> impl FnOnce(&mut NodeView) {
    let serial: pki::Serial = "40000000000000000000000000000001".parse().expect("a serial");
    move |view| view.certificate = Some(Certificate { serial, issued_at, not_after })
}

#[test]
fn a_certificate_that_was_not_renewed_is_told_in_time() {
    let mut story = Story::new();
    story.change(1, ends(86_400 + 100));
    story.until(200);
    story.change(210, ends(7 * 86_400));
    story.until(300);
    story.tells(&[
        (1, "opened", "certificate.overdue"),
        (100, "opened", "certificate.expiring"),
        (210, "closed", "certificate.overdue"),
        (210, "closed", "certificate.expiring"),
    ]);
}

#[test]
fn a_certificate_that_was_not_renewed_in_its_window_is_told_long_before_it_ends() {
    // Of 90 days; the window ends after 77 % of them, and that is at second 300.
    let life = Duration::from_secs(90 * 86_400);
    let issued_at = at(300).minus(life.mul_f64(0.77));
    for online in [true, false] {
        let mut story = Story::new();
        story.change(1, certified(issued_at, issued_at.plus(life)));
        if !online {
            story.change(2, |view| view.presence = Presence::Left { since: at(2), reason: "maintenance".into() });
        }
        story.until(1_199);
        story.tells(&[]);
        story.until(1_300);
        story.tells(&[(1_200, "opened", "certificate.overdue")]);
        let attention = story.evaluator.attention(story.view.node);
        let says = if online { "its log says why" } else { "bring it back before then" };
        assert!(attention.reasons[0].message.contains(says), "{attention:?}");
        story.change(1_310, certified(at(1_310), at(1_310).plus(life)));
        story.tells(&[(1_200, "opened", "certificate.overdue"), (1_310, "closed", "certificate.overdue")]);
    }
}

#[test]
fn a_short_life_is_no_alert_while_it_is_renewed_in_its_window() {
    let (mut story, hour) = (Story::new(), 3_600);
    for round in 0..3 {
        let now = 1 + round * hour * 3 / 4;
        story.change(now, certified(at(now), at(now + hour)));
    }
    story.tells(&[]);
    story.until(20_000);
    let left = 1 + 2 * hour * 3 / 4;
    // 77 % and a quarter of the rest; six sevenths.
    let (overdue, expiring) = (left + 2_979, left + 3_086);
    story.tells(&[(overdue, "opened", "certificate.overdue"), (expiring, "opened", "certificate.expiring")]);
}
