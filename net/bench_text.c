/* Text for prompts. Routing depends on what a prompt says, so the sentences differ in subject,
 * register and length; '#' becomes a number. The sentences were written for this file. */
#include "bench_workload.h"

#include <string.h>

static const char *const sentences[] = {
    "The harbour was quiet that morning, and only # boats had gone out past the breakwater.",
    "She folded the letter twice, put it back into the drawer and turned the key.",
    "Water boils at a lower temperature on a mountain because the air presses less on its surface.",
    "If the parcel has not arrived by Thursday, please call us and mention order number #.",
    "A good knife is not the sharpest one in the shop but the one that you keep sharp.",
    "for (int i = 0; i < #; i++) total += price[i] * count[i];",
    "The committee met for # hours and agreed on nothing except the date of its next meeting.",
    "Bees see ultraviolet light, which makes the patterns on many petals visible to them.",
    "\"You never told me that you could play the cello,\" he said, and sat down on the stairs.",
    "Mix # grams of flour with a pinch of salt, then rub in the butter until it looks like sand.",
    "In a binary search, each comparison halves the part of the list that is left.",
    "The train to the coast leaves from platform # and stops at every village on the way.",
    "Nobody in the office knew who had ordered the piano, but everyone had an opinion on it.",
    "Glaciers move a few centimetres a day; over # years that is enough to carve a valley.",
    "def area(width, height): return width * height",
    "My grandfather repaired watches at the kitchen table and spoke to them while he worked.",
    "The patient reported a dull pain in the left shoulder that had lasted for # days.",
    "Prices rose by # per cent in the spring, mostly because of energy and transport.",
    "There is a small bridge behind the mill where the children go to look for frogs.",
    "To reset the device, hold both buttons for # seconds until the light turns green.",
    "A court may set a contract aside when one of the parties was misled about its object.",
    "The second movement begins softly, in the strings, before the horns take up the theme.",
    "Once upon a time a fox lived in a den under an oak tree and was afraid of thunder.",
    "Photosynthesis turns carbon dioxide and water into sugar, with light as the source of energy.",
    "He had walked # miles before he noticed that the dog was no longer behind him.",
    "SELECT name, total FROM orders WHERE total > # ORDER BY total DESC;",
    "Economists disagree about the cause, but not about the size, of the change.",
    "The lighthouse keeper wrote down the weather every evening and never missed a day.",
    "What is the sum of # and #? Write down the steps before you give the answer.",
    "Old maps of the region show a lake where the airport stands today.",
    "In the final set she served at # kilometres an hour and did not lose a single point.",
    "The recipe calls for fresh basil, but dried oregano does no harm if you add it early.",
    "A hash table trades memory for speed: most look-ups need one probe, a few need many.",
    "Dear neighbours, on Saturday we will have guests, and it may be loud until about midnight.",
    "The old theatre has # seats, of which the ones behind the pillars are sold at half price.",
    "Copper conducts electricity better than iron, which is why most cables are made of it.",
    "\"Left at the church, then straight on until you smell the bakery,\" the woman explained.",
    "During the night the wind turned to the north and the temperature fell by # degrees.",
    "Every even number greater than two seems to be the sum of two primes; nobody has proved it.",
    "The museum keeps its oldest clock in the cellar, where the air is dry and the light is dim.",
    "struct point { float x, y; };  /* in pixels from the upper left corner */",
    "Our flight was delayed by # minutes, so we missed the ferry and slept in the terminal.",
    "A whale can hold its breath for more than an hour and dive deeper than most submarines.",
    "The mayor thanked the volunteers, who had filled # bags with litter along the river.",
    "Learning a language is less a matter of talent than of meeting the same word often enough.",
    "The contract runs for # months and ends without notice unless it is renewed in writing.",
    "She planted beans along the fence and lettuce in the shade, and waited for rain.",
    "Light from the nearest star needs more than four years to reach us.",
    "The detective looked at the clock, at the open window and then, for a long time, at the cat.",
    "An index makes reading faster and writing slower, so measure before you add one.",
    "Salt was once so valuable that roads were built only to carry it.",
    "Please find attached the minutes of meeting #, with the corrections that Maria asked for.",
    "The river rises in the hills, passes through three countries and ends in a wide delta.",
    "A vaccine shows the immune system a harmless part of the virus, so that it remembers.",
    "Two trains leave the same station, one at # and the other at # kilometres an hour.",
    "The baker's daughter counted the loaves again and found that one was missing.",
    "curl -s http://localhost:8080/status | grep -c running",
    "Critics called the novel slow; readers bought # thousand copies of it in a week.",
    "The roof needs new tiles on the west side, where the storms come from.",
    "Chess engines look many moves ahead, yet they cannot tell you why a position is beautiful.",
    "In autumn the cranes fly south in long lines, and the village comes out to watch them.",
    "Insulin lowers the level of sugar in the blood by letting cells take it up.",
    "We measured each sample # times and kept the median, because single readings are noisy.",
    "The old man laughed, shook the snow from his coat and asked whether there was soup.",
};

enum { NUM_SENTENCES = sizeof sentences / sizeof *sentences };

static void put_sentence(struct buffer *out, struct bench_rng *r, const char *s) {
    for (const char *hash; (hash = strchr(s, '#')); s = hash + 1) {
        buffer_append(out, s, (size_t)(hash - s));
        buffer_printf(out, "%d", (int)bench_rng_range(r, 2, 999));
    }
    buffer_puts(out, s);
}

void bench_text(struct buffer *out, struct bench_rng *r, const char *label, size_t bytes) {
    buffer_puts(out, label);
    int32_t last = -1;
    for (size_t end = out->len + bytes; out->len < end;) {
        int32_t i = bench_rng_range(r, 0, NUM_SENTENCES - 1);
        if (i == last)
            continue;
        put_sentence(out, r, sentences[i]);
        buffer_putc(out, bench_rng_range(r, 0, 5) == 0 ? '\n' : ' ');
        last = i;
    }
}
