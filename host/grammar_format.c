/* grammar_format: the formats of strings as regular expressions.
 *
 * Each is within what its specification allows: dates of the years 1 to 9999 (RFC 3339, without
 * leap seconds), addresses and host names without quotes, comments and "xn--", URIs without user
 * and IP address in brackets. Limits of parts and labels are kept by the length of the whole, so
 * that the automata stay small.
 */
#include <string.h>

#include "host/grammar_internal.h"

enum {
    MAX_LABEL = 63,    /* of a host name, and of what is before the @ of an address */
    MAX_COUNTED = 128, /* where the characters are counted */
};

#define YEAR   "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
#define FOURTH "(?:0[48]|[2468][048]|[13579][26])" /* of years, and of centuries */
#define DATE                                                                                       \
    "(?:" YEAR "-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|"                                \
    "(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))|"                          \
    "(?:[0-9]{2}" FOURTH "|" FOURTH "00)-02-29)"
#define TIME                                                                                       \
    "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\\.[0-9]{1,6})?"                                 \
    "(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
#define COUNT "[0-9]{1,6}"
#define DURATION_DATE                                                                              \
    "(?:" COUNT "Y(?:" COUNT "M(?:" COUNT "D)?)?|" COUNT "M(?:" COUNT "D)?|" COUNT "D)"
#define DURATION_TIME                                                                              \
    "T(?:" COUNT "H(?:" COUNT "M(?:" COUNT "S)?)?|" COUNT "M(?:" COUNT "S)?|" COUNT "S)"
#define OCTET     "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
#define HEX       "[0-9A-Fa-f]{1,4}"
#define LABEL     "[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*"
#define TOP_LABEL "[A-Za-z]+(?:-?[A-Za-z0-9])+" /* two characters and more */
#define ATEXT     "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
/* Characters of a path, behind the first '/' with any others, and of what follows it. Few ranges,
 * as each is an edge in every state. */
#define SEGMENT "(?:[&-.0-;=@-Z_a-z~]|%[0-9A-Fa-f]{2})"
#define PATH    "(?:[&-;=@-Z_a-z~]|%[0-9A-Fa-f]{2})*"
#define TAIL    "(?:[&-;=?-Z_a-z~]|%[0-9A-Fa-f]{2})*"

const char *format_pattern(const char *name) {
    static const char *const formats[][2] = {
        {"date", "^" DATE "$"},
        {"time", "^" TIME "$"},
        {"date-time", "^" DATE "T" TIME "$"},
        {"duration", "^P(?:" DURATION_DATE "(?:" DURATION_TIME ")?|" DURATION_TIME "|" COUNT "W)$"},
        {"uuid", "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"},
        {"email", "^" ATEXT "(?:\\." ATEXT ")*@(?:" LABEL "\\.)+" TOP_LABEL "$"},
        {"hostname", "^(?:" LABEL "\\.)*" TOP_LABEL "$"},
        {"uri", "^[A-Za-z][A-Za-z0-9+.-]*:(?://" LABEL "(?:\\." LABEL ")*(?::[0-9]{1,5})?(?:/" PATH
                ")?|" SEGMENT "+(?:/" PATH ")?)(?:\\?" TAIL ")?(?:#" TAIL ")?$"},
        {"ipv4", "^" OCTET "\\." OCTET "\\." OCTET "\\." OCTET "$"},
        {"ipv6", "^(?:" HEX ":){7}" HEX "$|^(?:" HEX ":){1,7}:$|^(?:" HEX ":){1,6}:" HEX "$|"
                 "^(?:" HEX ":){1,5}(?::" HEX "){1,2}$|^(?:" HEX ":){1,4}(?::" HEX "){1,3}$|"
                 "^(?:" HEX ":){1,3}(?::" HEX "){1,4}$|^(?:" HEX ":){1,2}(?::" HEX "){1,5}$|"
                 "^" HEX ":(?::" HEX "){1,6}$|^:(?::" HEX "){1,7}$|^::$"},
    };
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++)
        if (!strcmp(name, formats[i][0]))
            return formats[i][1];
    return NULL;
}

int32_t format_max_length(const char *name, int32_t min, int32_t max) {
    if (!strcmp(name, "email") || !strcmp(name, "hostname"))
        return max < MAX_LABEL ? max : MAX_LABEL;
    return max != INT32_MAX && max > MAX_COUNTED && min <= MAX_COUNTED ? MAX_COUNTED : max;
}
