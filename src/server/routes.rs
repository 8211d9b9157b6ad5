//! The routes, each with its handler. The handlers are thin: read, validate, act, write.

use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, Method, Response, Uri};
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use serde_json::{Map, Value, json};

use super::answer::{Kind, answer, random, refused};
use super::error::ApiError;
use super::fields::Fields;
use super::metrics::exposition::Format;
use super::middleware::Caller;
use super::{ServerState, ServerStatus, body, health, middleware, tokens, validate};
use crate::engine::QueuePermit;
use crate::generation::Refusal;

type Shared = State<Arc<ServerState>>;

/// Every route. The test of the key goes through this list.
pub fn routes() -> Vec<(&'static str, MethodRouter<Arc<ServerState>>)> {
    let probe = |(path, probe, _)| {
        let handler = move |State(state): Shared| async move { health::answer(&state.status, probe) };
        (path, get(handler))
    };
    let mut routes = vec![
        ("/v1/chat/completions", post(chat)),
        ("/v1/completions", post(completions)),
        ("/v1/models", get(models)),
        ("/v1/models/{*id}", get(model)),
        ("/tokenize", post(tokens::tokenize)),
        ("/detokenize", post(tokens::detokenize)),
        ("/metrics", get(metrics)),
        ("/version", get(version)),
    ];
    routes.extend(health::ALIASES.map(probe));
    routes
}

/// The whole service.
pub fn router(state: Arc<ServerState>) -> Router {
    let add = |router: Router<_>, (path, handler)| router.route(path, handler);
    let router = routes().into_iter().fold(Router::new(), add);
    let router = router.fallback(no_route).method_not_allowed_fallback(no_method);
    // Around everything, the fallbacks included.
    router.layer(from_fn_with_state(Arc::clone(&state), middleware::pass)).with_state(state)
}

/// What there is before the model is loaded.
pub fn before_start(status: &ServerStatus, path: &str, method: &Method) -> Response<Body> {
    match health::probe(path) {
        Some(probe) if [Method::GET, Method::HEAD].contains(method) => health::answer(status, probe),
        _ => ApiError::NotReady.into_response(),
    }
}

async fn chat(State(state): Shared, request: Request) -> Result<Response<Body>, ApiError> {
    let id = middleware::id_of(&request);
    let (place, caller, map) = enter(&state, request, Kind::Chat).await?;
    let valid = validate::chat(Fields::new(map), &state.limits, random()?)?.of(caller);
    answer(state, place, valid, Kind::Chat, id).await
}

async fn completions(State(state): Shared, request: Request) -> Result<Response<Body>, ApiError> {
    let id = middleware::id_of(&request);
    let (place, caller, map) = enter(&state, request, Kind::Text).await?;
    let valid = validate::completion(Fields::new(map), &state.limits, random()?)?.of(caller);
    answer(state, place, valid, Kind::Text, id).await
}

/// One place in the queue, whose request it is where the key says so, and the body. Whom the queue cannot hold need not send
/// a body; a place is taken when all of it is there, so that nobody holds one by sending nothing.
async fn enter(
    state: &ServerState,
    request: Request,
    kind: Kind,
) -> Result<(QueuePermit, Option<Caller>, Map<String, Value>), ApiError> {
    let (began, engine) = (Instant::now(), state.generator.engine());
    let refuse = |reject| {
        let refusal = Refusal::Rejected(reject);
        state.metrics.refused(&refusal);
        refused(state, refusal, kind)
    };
    let deadline = validate::deadline(request.headers())?;
    let caller = request.extensions().get::<Caller>().cloned();
    engine.check_room(1).map_err(refuse)?;
    let bytes = body::read(request, state).await?;
    let mut place = engine.enter(1).map_err(refuse)?;
    place.asked_for(began);
    if let Some(time) = deadline {
        place.due_within(time);
    }
    Ok((place, caller, body::parse(bytes, state).await?))
}

async fn models(State(state): Shared) -> Json<Value> {
    let data: Vec<Value> = state.limits.models.iter().map(|name| describe(&state, name)).collect();
    Json(json!({ "object": "list", "data": data }))
}

async fn model(
    State(state): Shared,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    // What is no UTF-8 is no model's name.
    let Path(id) = id.map_err(|_| ApiError::ModelNotFound("\u{FFFD}".to_owned()))?;
    let name = validate::served_model(Some(id), &state.limits.models)?;
    Ok(Json(describe(&state, &name)))
}

fn describe(state: &ServerState, name: &str) -> Value {
    json!({
        "id": name,
        "object": "model",
        "created": state.started,
        "owned_by": "octant",
        "max_model_len": state.max_model_len(),
    })
}

async fn metrics(State(state): Shared, headers: HeaderMap) -> impl IntoResponse {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let format = Format::from_accept(accept);
    state.metrics.reading(state.reading.seated());
    let text = state.metrics.render(&state.generator.engine().stats(), &state.status, format);
    ([(CONTENT_TYPE, format.content_type())], text)
}

async fn version() -> Json<Value> {
    Json(json!({ "version": env!("CARGO_PKG_VERSION") }))
}

async fn no_route(method: Method, uri: Uri) -> ApiError {
    ApiError::NoRoute(format!("{method} {}", uri.path()))
}

async fn no_method(method: Method, uri: Uri) -> ApiError {
    ApiError::NoMethod(format!("{method} {}", uri.path()))
}
