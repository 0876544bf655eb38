/* api: every route of the server but /health and /version, put together.
 *
 *   struct api api;
 *   api_init(&api, server, &options.server);       before server_run
 *   options.server.on_loaded = api_loaded, with &api
 *   api_deinit(&api);                              after it
 */
#pragma once

#include "net/metrics_text.h"
#include "net/openai.h"
#include "net/page.h"
#include "net/server.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { API_NUM_ROUTES = 3 };

/* Caller's memory, which must stay where it is. */
struct api {
    struct server *server; /* borrowed */
    struct openai openai;
    struct page page;
    struct metrics_sources sources;
    struct http_route routes[API_NUM_ROUTES + 1];
};

/* Adds the routes; options are borrowed. */
void api_init(struct api *a, struct server *server, const struct server_options *options);
/* The model is there (server_options.on_loaded); ctx is a struct api. */
void api_loaded(void *ctx, struct dispatch *dispatch);
void api_deinit(struct api *a);

#ifdef __cplusplus
}
#endif
