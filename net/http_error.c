#include "http_error.h"

#include <string.h>

#include "net/json_out.h"

static const char invalid[] = "invalid_request_error";

struct http_error http_error_of(int code) {
    switch (code) {
    case ERR_INVALID_JSON:
    case ERR_INVALID_REQUEST:
    case ERR_DUPLICATE_ID:
    case ERR_UNSUPPORTED:
        return (struct http_error){400, invalid, error_name(code)};
    case ERR_CONTEXT_LENGTH:
        return (struct http_error){400, invalid, "context_length_exceeded"};
    case ERR_UNAUTHORIZED:
        return (struct http_error){401, "authentication_error", "invalid_api_key"};
    case ERR_NOT_FOUND:
        return (struct http_error){404, invalid, "not_found"};
    case ERR_LINE_TOO_LONG:
        return (struct http_error){413, invalid, "body_too_large"};
    case ERR_OVERLOADED:
        return (struct http_error){429, "rate_limit_error", "overloaded"};
    case ERR_SHUTTING_DOWN:
    case ERR_LOADING:
        return (struct http_error){503, "unavailable_error", error_name(code)};
    case ERR_TIMEOUT:
        return (struct http_error){504, "timeout_error", "timeout"};
    default:
        return (struct http_error){500, "internal_error", "internal"};
    }
}

struct http_error http_error_of_status(int status) {
    static const struct {
        int status;
        const char *code;
    } codes[] = {
        {400, "invalid_request"},
        {403, "origin_not_allowed"},
        {404, "not_found"},
        {405, "method_not_allowed"},
        {408, "timeout"},
        {413, "body_too_large"},
        {414, "uri_too_long"},
        {415, "unsupported_encoding"},
        {417, "expectation_failed"},
        {431, "header_too_large"},
        {501, "not_implemented"},
        {505, "http_version_not_supported"},
    };
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
        if (codes[i].status == status)
            return (struct http_error){status, invalid, codes[i].code};
    return (struct http_error){status, "internal_error", "internal"};
}

void http_error_body(struct buffer *out, const struct http_error *e, const char *param,
                     const char *message) {
    buffer_puts(out, "{\"error\":{\"message\":");
    json_out_text(out, message, strlen(message));
    buffer_printf(out, ",\"type\":\"%s\",\"param\":", e->type);
    if (param && *param)
        json_out_text(out, param, strlen(param));
    else
        buffer_puts(out, "null");
    if (e->code)
        buffer_printf(out, ",\"code\":\"%s\"}}", e->code);
    else
        buffer_puts(out, ",\"code\":null}}");
}

const char *http_status_text(int status) {
    static const struct {
        int status;
        const char *text;
    } texts[] = {
        {200, "OK"},
        {204, "No Content"},
        {400, "Bad Request"},
        {401, "Unauthorized"},
        {403, "Forbidden"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {408, "Request Timeout"},
        {413, "Content Too Large"},
        {414, "URI Too Long"},
        {415, "Unsupported Media Type"},
        {417, "Expectation Failed"},
        {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"},
        {500, "Internal Server Error"},
        {501, "Not Implemented"},
        {503, "Service Unavailable"},
        {504, "Gateway Timeout"},
        {505, "HTTP Version Not Supported"},
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (texts[i].status == status)
            return texts[i].text;
    return "Unknown";
}
