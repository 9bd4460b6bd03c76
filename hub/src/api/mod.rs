//! The REST API: thin handlers over the hub's own functions, and its description in OpenAPI 3.1.

mod alerts;
mod api_tokens;
mod audit;
pub(crate) mod authorities;
mod bundles;
pub(crate) mod certificate_policies;
pub(crate) mod commands;
pub(crate) mod denial;
mod events;
pub(crate) mod extract;
pub(crate) mod follow;
pub(crate) mod idempotency;
mod kafka;
pub(crate) mod kept_logs;
mod labels;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod meant;
pub(crate) mod nodes;
mod operator_keys;
pub(crate) mod problem;
mod renewals;
mod requests;
pub mod resource;
mod revocation_lists;
pub(crate) mod rollouts;
pub(crate) mod roster;
pub(crate) mod rotations;
pub mod select;
mod tenants;
mod tokens;

use axum::Router;
use axum::routing::get;
use serde_json::{Value, json};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) use alerts::alert_resources;

use crate::web::App;

/// The description's frame; utoipa fills in paths and schemas from the handlers.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Hyperfactory hub",
        description = "Everything the dashboard shows and does, for programs. Errors are application/problem+json \
                       (RFC 9457). Lists are paged by cursor. A creating call with the header Idempotency-Key can be \
                       sent again within a day and takes effect once. A token bound to a tenant sees nothing of \
                       another: what is not its own is answered with 404.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    modifiers(&Bearer),
    security(("bearer" = [])),
    components(schemas(problem::Problem)),
)]
struct Description;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .bearer_format("hft_…")
            .description(Some("An API token: `hyperfactory-hub api-token`, or the dashboard's page API tokens."))
            .build();
        let components = api.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(scheme));
    }
}

/// Every address below `/api/v1`, `/pki` and `/crl`.
pub(crate) fn router() -> Router<App> {
    let (router, description) = described();
    let description = serde_json::to_vec(&description).unwrap_or_default();
    router.route(
        "/api/v1/openapi.json",
        get(async move || ([(axum::http::header::CONTENT_TYPE, "application/json")], description.clone())),
    )
}

fn described() -> (Router<App>, Value) {
    let (router, description) = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(tenants::list, tenants::create))
        .routes(routes!(tenants::show))
        .routes(routes!(kafka::server_certificate))
        .routes(routes!(kafka::access))
        .routes(routes!(authorities::list))
        .routes(routes!(certificate_policies::list))
        .routes(routes!(certificate_policies::set, certificate_policies::reset))
        .routes(routes!(renewals::create))
        .routes(routes!(rotations::list, rotations::create))
        .routes(routes!(rotations::show))
        .routes(routes!(rotations::missing))
        .routes(routes!(rotations::advance))
        .routes(routes!(rotations::back))
        .routes(routes!(authorities::awaited))
        .routes(routes!(bundles::fleet_root))
        .routes(routes!(bundles::kafka_root))
        .routes(routes!(bundles::nodes_intermediate))
        .routes(routes!(tokens::list, tokens::create))
        .routes(routes!(nodes::list))
        .routes(routes!(nodes::show, nodes::remove))
        .routes(routes!(nodes::revoke))
        .routes(routes!(nodes::unfreeze))
        .routes(routes!(labels::show, labels::replace))
        .routes(routes!(revocation_lists::show))
        .routes(routes!(nodes::history))
        .routes(routes!(nodes::coverage))
        .routes(routes!(logs::read))
        .routes(routes!(kept_logs::list))
        .routes(routes!(kept_logs::coverage))
        .routes(routes!(alerts::list))
        .routes(routes!(commands::list, commands::request))
        .routes(routes!(commands::preview))
        .routes(routes!(commands::show))
        .routes(routes!(commands::cancel))
        .routes(routes!(requests::cancel))
        .routes(routes!(rollouts::list, rollouts::create))
        .routes(routes!(rollouts::show))
        .routes(routes!(rollouts::nodes))
        .routes(routes!(rollouts::pause))
        .routes(routes!(rollouts::resume))
        .routes(routes!(rollouts::abort))
        .routes(routes!(operator_keys::list, operator_keys::register))
        .routes(routes!(operator_keys::revoke))
        .routes(routes!(audit::list))
        .routes(routes!(audit::follow))
        .routes(routes!(audit::head))
        .routes(routes!(audit::export))
        .routes(routes!(api_tokens::list, api_tokens::create))
        .routes(routes!(api_tokens::revoke))
        .routes(routes!(events::stream))
        .split_for_parts();
    let mut description = serde_json::to_value(&description).unwrap_or_default();
    describe_failures(&mut description);
    (router, description)
}

/// Every call fails in one way: with a problem.
fn describe_failures(description: &mut Value) {
    let failure = json!({
        "description": "What went wrong, and what to do.",
        "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } },
    });
    let paths = description["paths"].as_object_mut().into_iter().flat_map(|paths| paths.values_mut());
    for operation in paths.filter_map(Value::as_object_mut).flat_map(|path| path.values_mut()) {
        if let Some(responses) = operation["responses"].as_object_mut() {
            responses.insert("default".to_owned(), failure.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_description_is_openapi_3_1_and_names_every_error() {
        let (_, described) = described();
        assert!(described["openapi"].as_str().expect("a version").starts_with("3.1"), "{}", described["openapi"]);
        let paths = described["paths"].as_object().expect("paths");
        assert_eq!(paths.len(), 50);
        for (path, operations) in paths {
            for (method, operation) in operations.as_object().expect("operations") {
                let responses = operation["responses"].as_object().expect("responses");
                let failure = &responses["default"]["content"]["application/problem+json"];
                assert!(failure.is_object(), "{method} {path} does not describe its errors");
            }
        }
    }
}
