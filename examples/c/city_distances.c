/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * city_distances cities.csv - the two cities of a table that are farthest apart.
 * The table lies in memory that every worker sees at the same address (tri_share_open), so an item
 * is only a pointer into it, and what a worker finds it writes there.
 */
#include <math.h>
#include <stdio.h>
#include <trireme.h>

struct city {
    char name[64];
    double lat, lon, km; /* degrees; to farthest, which lies between first and this row */
    struct city *first, *farthest;
};

static int find_farthest(const void *in, void *out)
{
    struct city *b = *(struct city *const *)in;
    const double rad = acos(-1) / 180;

    (void)out;
    for (struct city *a = b->first; a < b; a++) {
        double u = sin((a->lat - b->lat) * rad / 2), v = sin((a->lon - b->lon) * rad / 2);
        double h = u * u + cos(a->lat * rad) * cos(b->lat * rad) * v * v;
        double km = 2 * 6371 * atan2(sqrt(h), sqrt(1 - h));

        if (km > b->km) {
            b->km = km;
            b->farthest = a;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    enum { MOST = 4096 };
    struct city *item[MOST], *c, *best;
    tri_pool *pool;
    tri_share *share;
    size_t n = 0;

    if (argc != 2 || !freopen(argv[1], "r", stdin) || scanf("%*[^\n]") != 0 ||
        tri_pool_open(&pool, NULL) || tri_share_open(pool, MOST * sizeof *c, &share))
        return 1;
    best = c = tri_share_data(share);
    while (n < MOST && scanf(" %63[^,],%*[^,],%lf,%lf,%*d", c->name, &c->lat, &c->lon) == 3) {
        c->first = best;
        item[n++] = c++;
    }
    if (n < 2 || tri_map(pool, find_farthest, item, sizeof *item, NULL, 0, n, NULL))
        return 1;
    for (size_t i = 0; i < n; i++)
        best = item[i]->km > best->km ? item[i] : best;
    printf("%s and %s: %.0f km\n", best->farthest->name, best->name, best->km);
    tri_pool_close(pool);
    return 0;
}
