//! The routes and their handlers. A handler reads, validates, acts and writes; the work itself is done
//! elsewhere.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE, ORIGIN};
use axum::http::{HeaderMap, HeaderValue, Method, Response, Uri};
use axum::middleware::from_fn_with_state;
use axum::response::IntoResponse;
use axum::routing::{MethodRouter, get, post};
use axum::{Extension, Json, Router};
use serde_json::{Map, Value};

use super::access::UsageAccess;
use super::access_log::AccessRecord;
use super::api_keys::Caller;
use super::cors::AllowedOrigins;
use super::error::ApiError;
use super::fields::Fields;
use super::generate::Admission;
use super::ignored_header::ignored_header;
use super::info_reply::{ModelList, ModelReply, VersionReply};
use super::metrics::exposition::Format;
use super::reply_writer::ReplyKind;
use super::reward::writer::ScorePlan;
use super::state::ServerState;
use super::status::ServerStatus;
use super::system::random_u64;
use super::types::{DEADLINE_HEADER, MAX_DEADLINE_MS};
use super::validate::{Limits, ValidRequest};
use super::{
    batches, body, docs, endpoint_requests, error_response, files, generate, health, host, middleware, page,
    sse, tokenize, validate,
};
use crate::batch::{Endpoint, Runner};
use crate::generation::Refusal;

type Shared = State<Arc<ServerState>>;
/// Validates the body of a request for scores.
type ReadScores = fn(Fields, &Limits) -> Result<(ValidRequest, ScorePlan), ApiError>;

/// Returns every route's path and handler. Tests check the API key on all of them.
pub fn routes() -> Vec<(&'static str, MethodRouter<Arc<ServerState>>)> {
    let probe = |(path, probe, _)| {
        let handler = move |State(state): Shared| async move { health::respond(&state.status, probe) };
        (path, get(handler))
    };
    let mut routes = vec![
        ("/v1/chat/completions", post(chat)),
        ("/v1/completions", post(completions)),
        ("/v1/reward", post(reward)),
        ("/pooling", post(pooling)),
        ("/classify", post(classify)),
        ("/get_reward", post(get_reward)),
        ("/v1/responses", post(responses)),
        ("/v1/messages", post(messages)),
        ("/v1/messages/count_tokens", post(tokenize::count_tokens)),
        ("/v1/models", get(models)),
        ("/v1/models/{*id}", get(model)),
        ("/v1/files", get(files::list_files).post(files::upload)),
        ("/v1/files/{id}", get(files::file).delete(files::delete)),
        ("/v1/files/{id}/content", get(files::content)),
        ("/v1/batches", get(batches::list_batches).post(batches::create)),
        ("/v1/batches/{id}", get(batches::batch)),
        ("/v1/batches/{id}/cancel", post(batches::cancel)),
        ("/tokenize", post(tokenize::tokenize)),
        ("/detokenize", post(tokenize::detokenize)),
        ("/tokenizer_info", get(tokenize::tokenizer_info)),
        ("/metrics", get(metrics)),
        ("/version", get(version)),
    ];
    routes.extend(health::ALIASES.map(probe));
    let part = |file: page::PageFile| {
        (file.path, get(move |headers: HeaderMap| async move { file.respond(&headers) }))
    };
    routes.extend(page::FILES.map(part));
    routes.push(docs::route());
    routes
}

/// Returns the router of all routes, with the middleware around it. `runner` runs the server's batches.
pub(crate) fn router(state: Arc<ServerState>, runner: Option<Arc<Runner>>) -> Router {
    let add = |router: Router<_>, (path, handler)| router.route(path, handler);
    let router = routes().into_iter().fold(Router::new(), add);
    let router = router.fallback(no_route).method_not_allowed_fallback(no_method);
    // The middleware covers the fallbacks too.
    router
        .layer(Extension(runner))
        .layer(from_fn_with_state(Arc::clone(&state), middleware::handle))
        .with_state(state)
}

/// Responds to a request that arrives before the model is loaded: probes are answered, all else gets a 503.
pub(super) fn before_start<B>(
    status: &ServerStatus,
    origins: &AllowedOrigins,
    request: &http::Request<B>,
) -> Response<Body> {
    let record = AccessRecord::new(request.method().as_str(), request.uri().path(), None);
    let mut response = match (host::of(request), health::probe(request.uri().path())) {
        (Err(error), _) => error.into_response(),
        (_, Some(probe)) if [Method::GET, Method::HEAD].contains(request.method()) => {
            health::respond(status, probe)
        }
        _ => origins.preflight(request).unwrap_or_else(|| ApiError::NotReady.into_response()),
    };
    error_response::adapt(request.uri().path(), None, &mut response);
    origins.add_headers(request.headers().get(ORIGIN), response.headers_mut());
    middleware::answered(&record, &response);
    response
}

async fn chat(state: Shared, request: Request) -> Result<Response<Body>, ApiError> {
    endpoint(state, request, Endpoint::Chat, "messages").await
}

async fn completions(state: Shared, request: Request) -> Result<Response<Body>, ApiError> {
    endpoint(state, request, Endpoint::Completions, "prompt").await
}

async fn reward(state: Shared, request: Request) -> Result<Response<Body>, ApiError> {
    endpoint(state, request, Endpoint::Reward, "messages").await
}

/// Answers a request of a route that batches have too.
async fn endpoint(
    State(state): Shared,
    request: Request,
    endpoint: Endpoint,
    param: &'static str,
) -> Result<Response<Body>, ApiError> {
    let record = middleware::record_of(&request);
    let UnvalidatedRequest { admission, caller, body } = enter(&state, request, param).await?;
    let (valid, kind) = endpoint_requests::read(endpoint, Fields::new(body), &state.limits, random_u64()?)?;
    respond(&state, admission, valid.of(caller), kind, record).await
}

async fn pooling(state: Shared, request: Request) -> Result<Response<Body>, ApiError> {
    scores(state, request, "input", validate::pooling).await
}

async fn classify(state: Shared, request: Request) -> Result<Response<Body>, ApiError> {
    scores(state, request, "input", validate::classify).await
}

async fn get_reward(state: Shared, request: Request) -> Result<Response<Body>, ApiError> {
    scores(state, request, "query", validate::get_reward).await
}

/// Answers a request for scores, which `read` validates.
async fn scores(
    State(state): Shared,
    request: Request,
    param: &'static str,
    read: ReadScores,
) -> Result<Response<Body>, ApiError> {
    let record = middleware::record_of(&request);
    let UnvalidatedRequest { admission, caller, body } = enter(&state, request, param).await?;
    let (valid, plan) = read(Fields::new(body), &state.limits)?;
    respond(&state, admission, valid.of(caller), ReplyKind::Score(Box::new(plan)), record).await
}

async fn responses(State(state): Shared, request: Request) -> Result<Response<Body>, ApiError> {
    let record = middleware::record_of(&request);
    let UnvalidatedRequest { admission, caller, body } = enter(&state, request, "input").await?;
    let (valid, echo) = validate::response(Fields::new(body), &state.limits, random_u64()?)?;
    respond(&state, admission, valid.of(caller), ReplyKind::Response(Box::new(echo)), record).await
}

async fn messages(State(state): Shared, request: Request) -> Result<Response<Body>, ApiError> {
    let record = middleware::record_of(&request);
    let UnvalidatedRequest { admission, caller, body } = enter(&state, request, "messages").await?;
    let (valid, most) = validate::message(Fields::new(body), &state.limits, random_u64()?)?;
    respond(&state, admission, valid.of(caller), ReplyKind::Message(most), record).await
}

/// A request that holds a place in the queue and whose body has been read, but not validated.
struct UnvalidatedRequest {
    admission: Admission,
    /// The caller, if the API key is a named one.
    caller: Option<Caller>,
    body: Map<String, Value>,
}

/// Takes a place in the queue and reads the body.
///
/// A full queue refuses the request before its body is read. The place is taken only when the whole body has
/// arrived, so that a client that sends nothing holds none. `param` is the field that holds the prompt.
async fn enter(
    state: &ServerState,
    request: Request,
    param: &'static str,
) -> Result<UnvalidatedRequest, ApiError> {
    let (received_at, engine) = (Instant::now(), state.generator.engine());
    let refuse = |reject| {
        let refusal = Refusal::Rejected(reject);
        state.metrics.refused(&refusal);
        generate::refusal_error(state, refusal, param)
    };
    let timeout = deadline(request.headers())?;
    let caller = request.extensions().get::<Caller>().cloned();
    engine.check_room(1).map_err(refuse)?;
    let body = body::read(request, state).await?;
    let permit = engine.enter(1).map_err(refuse)?;
    let admission = Admission { permit, received_at, timeout, fixed_id: None };
    Ok(UnvalidatedRequest { admission, caller, body: body::parse(body, state).await? })
}

/// Reads [`DEADLINE_HEADER`]. If it occurs several times, because proxies add their own, the shortest time
/// counts.
///
/// # Errors
/// 400 if a value is not a valid number of milliseconds.
fn deadline(headers: &HeaderMap) -> Result<Option<Duration>, ApiError> {
    let all = headers.get_all(DEADLINE_HEADER).iter().map(|value| {
        let ms = value.to_str().ok().and_then(|text| text.trim().parse::<u64>().ok());
        ms.filter(|ms| (1..=MAX_DEADLINE_MS).contains(ms)).ok_or_else(|| {
            let got = String::from_utf8_lossy(value.as_bytes());
            let text =
                format!("expected a whole number of milliseconds from 1 to {MAX_DEADLINE_MS}, got \"{got}\"");
            ApiError::invalid(DEADLINE_HEADER, text)
        })
    });
    let all: Vec<u64> = all.collect::<Result<_, _>>()?;
    Ok(all.into_iter().min().map(Duration::from_millis))
}

/// Generates and writes the reply, whole or as events.
async fn respond(
    state: &Arc<ServerState>,
    admission: Admission,
    valid: ValidRequest,
    kind: ReplyKind,
    record: Arc<AccessRecord>,
) -> Result<Response<Body>, ApiError> {
    let stream = valid.stream;
    let generation = generate::start(state, admission, valid, kind, record).await?;
    let ignored = ignored_header(generation.ignored());
    let mut response = if stream {
        sse::respond(generation, state.settings.http.keep_alive)
    } else {
        let body = generation.complete().await?;
        ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], Body::from(body)).into_response()
    };
    response.headers_mut().extend(ignored);
    Ok(response)
}

async fn models(State(state): Shared) -> Json<ModelList> {
    let data = state.limits.models.iter().map(|name| describe(&state, name)).collect();
    Json(ModelList { object: "list", data })
}

async fn model(
    State(state): Shared,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<ModelReply>, ApiError> {
    // Model names are UTF-8, so a path that is not valid UTF-8 names no model.
    let Path(id) = id.map_err(|_| ApiError::ModelNotFound("\u{FFFD}".to_owned()))?;
    let name = validate::served_model(Some(id), &state.limits)?;
    Ok(Json(describe(&state, &name)))
}

fn describe(state: &ServerState, name: &str) -> ModelReply {
    ModelReply {
        id: name.to_owned(),
        object: "model",
        created: state.started,
        owned_by: "octant",
        max_model_len: state.max_model_len(),
        task: if state.limits.scoring.is_some() { "reward" } else { "generate" },
        attributes: state.limits.scoring.as_ref().map(|scoring| scoring.names().to_vec()),
    }
}

async fn metrics(
    State(state): Shared,
    Extension(usage): Extension<UsageAccess>,
    Extension(runner): batches::RunnerExtension,
    headers: HeaderMap,
) -> impl IntoResponse {
    let accept = headers.get(ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let format = Format::from_accept(accept);
    state.metrics.batch_lines(runner.map(|runner| runner.ended()).unwrap_or_default());
    state.metrics.reading(state.body_permits.held());
    state.metrics.dropped_log_lines(state.settings.dropped_log_lines.load(Ordering::Relaxed));
    let stats = state.generator.engine().stats();
    let text = state.metrics.render(&stats, &state.status, format, usage.0);
    ([(CONTENT_TYPE, format.content_type())], text)
}

async fn version() -> Json<VersionReply> {
    Json(VersionReply { version: env!("CARGO_PKG_VERSION") })
}

async fn no_route(method: Method, uri: Uri) -> ApiError {
    ApiError::NoRoute(format!("{method} {}. The page /docs lists the routes of this server.", uri.path()))
}

async fn no_method(method: Method, uri: Uri) -> ApiError {
    ApiError::NoMethod(format!("{method} {}", uri.path()))
}
