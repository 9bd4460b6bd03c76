//! What is doubtful about routes, and what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{Routes, To};

/// What is wrong or doubtful about the routes, for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lint {
    /// Number of the route, from 1.
    pub route: usize,
    /// What, and what to do.
    pub said: String,
}

impl Routes {
    /// What is doubtful about the routes.
    pub fn lints(&self) -> Vec<Lint> {
        let (mut lints, meetings) = (Vec::new(), self.meetings());
        for (index, route) in self.routes.iter().enumerate() {
            let mut lint = |said: String| lints.push(Lint { route: index + 1, said });
            let earlier = self.routes[..index].iter().position(|earlier| {
                earlier.from.covers(&route.from) && (earlier.mqtt.is_none() || earlier.mqtt == route.mqtt)
            });
            if let Some(earlier) = earlier {
                lint(format!(
                    "{} is never reached: route {} ({}) takes all of it; put the narrower one first",
                    route.from,
                    earlier + 1,
                    self.routes[earlier].from
                ));
            }
            if route.from.is_shared() {
                lint(format!(
                    "{} is a shared subscription: with several readers the order within a topic is lost",
                    route.from
                ));
            }
            if let Some(first) = meetings.get(&index) {
                let other = &self.routes[*first].from;
                let advice = if route.from.is_shared() || other.is_shared() {
                    "have each topic come by one of them alone, shared or not"
                } else {
                    "have them meet nowhere, or put a route behind them whose filter covers both"
                };
                lint(format!(
                    "{} meets {other} of route {}: a broker may send what comes by both twice, as Mosquitto does with \
                     version = 5, and then it is twice in Kafka; {advice}",
                    route.from,
                    first + 1
                ));
            }
            if let To::Template { topic, key } = &route.to {
                if key.is_constant() {
                    lint("the key is the same for all messages, so all go to one partition; use {topic}".into());
                }
                if !topic.is_constant() {
                    lint(
                        "the Kafka topic's name depends on the message: a level with other characters than letters, \
                         digits, '.', '_' and '-' makes a name that is refused, and levels joined by '.' may meet others \
                         with a '.' in them"
                            .into(),
                    );
                }
            }
        }
        lints
    }

    /// Filters that one connection subscribes to and that meet, by the places of their routes: the later one, and the first
    /// that it meets.
    fn meetings(&self) -> BTreeMap<usize, usize> {
        // And one that no route names.
        let connections: BTreeSet<&str> = self.routes.iter().map(|route| route.mqtt.as_deref().unwrap_or("")).collect();
        let mut meetings = BTreeMap::new();
        for mqtt in connections {
            let filters = self.subscribed(mqtt);
            for (place, (later, filter)) in filters.iter().enumerate() {
                if let Some((first, _)) = filters[..place].iter().find(|(_, earlier)| earlier.meets(filter)) {
                    meetings.entry(*later).or_insert(*first);
                }
            }
        }
        meetings
    }
}

impl fmt::Display for Lint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "route {}: {}", self.route, self.said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::RouteConfig;

    fn route(from: &str, to: &str) -> RouteConfig {
        RouteConfig { from: Some(from.into()), to: Some(to.into()), ..RouteConfig::default() }
    }

    #[test]
    fn what_is_doubtful_is_told() {
        let constant = RouteConfig { key: Some("all".into()), ..route("c", "x") };
        let routes = Routes::new(&[
            route("a/#", "x"),
            route("a/b", "x"),
            route("$share/g/s", "x"),
            constant,
            route("d/+", "{2}"),
        ]);
        let said = routes.unwrap().lints().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(said.len(), 4, "{said:?}");
        assert!(said[0].starts_with("route 2: a/b is never reached: route 1"), "{said:?}");
        assert!(
            said[1].contains("shared") && said[2].contains("one partition") && said[3].contains("depends"),
            "{said:?}"
        );
    }

    #[test]
    fn filters_of_one_connection_that_meet_without_one_covering_the_other_are_told() {
        let meetings = |routes: &[RouteConfig]| {
            let lints = Routes::new(routes).unwrap().lints();
            lints.iter().map(ToString::to_string).filter(|said| said.contains(" meets ")).collect::<Vec<_>>()
        };
        let (narrow, deep) = (route("a/+/c", "x"), route("a/b/#", "x"));
        let said = meetings(&[narrow.clone(), route("d", "x"), deep.clone()]).join("\n");
        assert!(said.starts_with("route 3: a/b/# meets a/+/c of route 1: ") && said.contains("covers both"), "{said}");
        // One subscription is enough for all of it.
        assert!(meetings(&[narrow.clone(), deep.clone(), route("a/#", "x")]).is_empty());
        let on = |mqtt: &str, route: &RouteConfig| RouteConfig { mqtt: Some(mqtt.into()), ..route.clone() };
        assert!(meetings(&[on("north", &narrow), on("south", &deep)]).is_empty());
        assert_eq!(meetings(&[on("north", &narrow), deep]).len(), 1);
        let said = meetings(&[route("$share/g/a/#", "x"), route("a/b", "x")]).join("\n");
        assert!(said.contains("a/b meets $share/g/a/# of route 1") && said.contains("by one of them alone"), "{said}");
    }
}
