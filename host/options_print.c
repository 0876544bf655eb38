/* options_print: --help and config --print. */
#include "host/ini.h"
#include "host/options_internal.h"

/* ---- help ---- */

static void put_default(const struct options *o, const struct option *opt, struct buffer *out) {
    const void *at = (const char *)o + opt->offset;
    const char *s;
    switch (opt->type) {
    case OPT_BOOL:
        if (*(const bool *)at)
            buffer_printf(out, " [on; --no-%s]", opt->name);
        break;
    case OPT_INT:
        buffer_printf(out, " [%d]", *(const int32_t *)at);
        break;
    case OPT_INT64:
    case OPT_BYTES:
        buffer_printf(out, " [%lld]", (long long)*(const int64_t *)at);
        break;
    case OPT_NUMBER:
        buffer_printf(out, " [%g]", (double)*(const float *)at);
        break;
    case OPT_SEED:
        buffer_printf(out, " [%llu]", (unsigned long long)*(const uint64_t *)at);
        break;
    case OPT_SECRETS:
        break;
    default:
        s = *(const char *const *)at;
        if (s)
            buffer_printf(out, " [%s]", s);
    }
}

static const char *placeholder(const struct option *opt) {
    switch (opt->type) {
    case OPT_BOOL:
        return "";
    case OPT_INT:
    case OPT_INT64:
    case OPT_SEED:
        return " N";
    case OPT_BYTES:
        return " BYTES";
    case OPT_NUMBER:
        return " X";
    case OPT_LISTEN:
        return " HOST:PORT";
    case OPT_ORIGIN:
        return " ORIGIN";
    case OPT_SECRETS:
        return " KEY";
    default:
        return " TEXT";
    }
}

void options_help(unsigned command, struct buffer *out) {
    struct options defaults;
    options_init(&defaults);
    for (int i = 0; i < num_options; i++) {
        const struct option *opt = &option_table[i];
        if (!(opt->commands & command) || !opt->help) /* without help: for tests */
            continue;
        if (!opt->name) {
            buffer_printf(out, "\n%s\n", opt->help);
            continue;
        }
        buffer_printf(out, "  --%s%s", opt->name, placeholder(opt));
        if (*opt->aliases)
            buffer_printf(out, "  (%s)", opt->aliases);
        buffer_printf(out, "\n        %s", opt->help);
        if (opt->choices)
            buffer_printf(out, " (%s)", opt->choices);
        put_default(&defaults, opt, out);
        buffer_putc(out, '\n');
    }
    options_deinit(&defaults);
}

/* ---- config --print ---- */

static void put_source(const struct option_source *from, struct buffer *out) {
    switch (from->origin) {
    case ORIGIN_DEFAULT:
        buffer_puts(out, "default");
        break;
    case ORIGIN_MODEL:
        buffer_puts(out, "the model's generation_config.json");
        break;
    case ORIGIN_FILE:
        buffer_printf(out, "%s:%d", from->name, from->line);
        break;
    case ORIGIN_ENVIRONMENT:
        buffer_printf(out, "environment %s", from->name);
        break;
    case ORIGIN_FLAG:
        buffer_puts(out, "command line");
        break;
    }
}

static void put_secrets(const struct options *o, const struct option *opt,
                        const struct option_source *from, struct buffer *out) {
    const void *at = (const char *)o + opt->offset;
    int32_t count = ((const struct option_list *)at)->count;
    if (count == 0)
        buffer_printf(out, "; %s is not set", opt->name);
    else
        buffer_printf(out, "; %s is set (", opt->name);
    if (count > 1)
        buffer_printf(out, "%d of them, ", count);
    if (count > 0) {
        buffer_puts(out, "from ");
        put_source(from, out);
        buffer_putc(out, ')');
    }
    buffer_putc(out, '\n');
}

static void put_option(const struct options *o, const struct option *opt, struct buffer *out) {
    const struct option_source *from = &o->source[opt - option_table];
    struct buffer value = {0};
    if (opt->type == OPT_SECRETS) {
        put_secrets(o, opt, from, out);
        return;
    }
    bool has_value = option_format(o, opt, &value);
    buffer_putc(&value, '\0');
    buffer_printf(out, "%s%s = ", from->origin == ORIGIN_DEFAULT ? ";" : "", opt->name);
    if (has_value)
        ini_put_value(out, value.data);
    buffer_puts(out, has_value ? "  ; " : " ; not set, ");
    put_source(from, out);
    buffer_putc(out, '\n');
    buffer_deinit(&value);
}

void options_print(const struct options *o, unsigned command, struct buffer *out) {
    buffer_puts(out, "; What stands behind a ';' alone is a default, and how it is called.\n");
    for (int i = 0; i < num_options; i++) {
        const struct option *opt = &option_table[i];
        bool is_default = o->source[i].origin == ORIGIN_DEFAULT;
        if (!(opt->commands & command) || (opt->name && option_is_flag_only(opt)))
            continue;
        if (!opt->name)
            buffer_printf(out, "\n; ---- %s ----\n", opt->help);
        else if (opt->help || !is_default) /* without help: for tests */
            put_option(o, opt, out);
    }
}
