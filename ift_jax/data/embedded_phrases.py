"""The phrase inventory of the embedded reviews: what `embedded_reviews` puts together.

All wording was written for this project. The layout of `PRODUCTS`, one block per category:

    # product_category | noun that the body uses for the product
    titles: product titles without the brand
    uses:   what one buys it for; fits after "for" and "three months of"
    the lid                 an aspect; "(plural)" after it if it takes a plural verb
    + open with one finger  virtues: verb phrases in base form, whose verb is not "be"
    - stick every morning   faults, likewise; "|" separates phrases

Slots of the sentence frames, all in braces:

    item, use               noun and use of the category
    time, person, weekday, reason   from the tuples of the same meaning below
    good, bad               a clause about one aspect that counts for or against the product, either
                            plainly ("the lid sticks") or denied ("the lid does not stick")
    claim                   good or bad, as the pool that the frame is used for says
    other                   a second clause of the same sign, about another aspect
    subject, pronoun, does  the aspect, "it" or "they", "does" or "do"
    virtue, fault           a bare verb phrase for {subject}
    virtues, faults         the plain clause: subject and verb phrase, conjugated
"""

PRODUCTS = """
# Kitchen | kettle
titles: 1.7 l glass kettle | 1 l steel kettle | gooseneck kettle | folding travel kettle
titles: quiet kettle with filter | retro kettle, cream
uses: morning tea | late-night cocoa | office tea rounds | instant noodles | pour-over coffee
uses: family breakfasts | holiday flats | hot water bottles
the lid
+ open at the touch of one finger | close with a firm click
+ lift off for easy cleaning | stay shut to the last cup
- stick on most mornings | drip hot water on my wrist
- rattle at the boil | need two hands to open
the spout
+ pour a thin and steady stream | reach the smallest cup without a splash
+ keep every drop where it belongs | let me fill a flask cleanly
- dribble down the front | spit hot water across the counter
- clog up with scale | leave a puddle next to the cup
the handle
+ stay cool to the touch | sit well in a wet hand
+ leave room for big fingers | balance a full load nicely
- get too hot to hold | wobble under a full load
- dig into my palm | creak with every cup
the switch
+ respond to the lightest press | click off at the boil
+ glow softly in the dark | work with one thumb
- jam halfway down | cut out too early
- demand three attempts | flicker at random
the base
+ grip the worktop firmly | tuck the spare cord away neatly
+ take the pot from any side | wipe clean in seconds
- slide around the worktop | hum loudly during heating
- rust around the edge | take up half of the worktop

# Electronics | headset
titles: over-ear wireless headset | gaming headset with mic | sports headset
titles: noise-cancelling headset | folding office headset | kids' wired headset
uses: video calls | long flights | late-night gaming | language lessons | noisy train rides
uses: podcast editing | open-plan offices | evening films
the battery
+ last through a whole working week | charge fully during a short lunch
+ hold its charge in the drawer | survive the longest flight
- die before the second meeting | drop from half full to empty in minutes
- need a whole night to charge | drain overnight
the sound
+ stay clear at high volume | bring out the finest details
+ carry deep bass without booming | fill quiet passages with warmth
- crackle in the left ear | turn muddy during drum solos
- lag behind the picture | hiss through every quiet passage
the microphone
+ pick up my voice from any angle | block the noise of the street
+ fold away neatly | make me sound like a radio host
- swallow half of my words | pick up every keystroke
- make me sound like a robot | droop away from my mouth
the ear pads (plural)
+ stay soft after hours of wear | fit around my glasses
+ wash well by hand | keep my ears cool
- press on my ears after an hour | peel along the rim
- trap the heat like earmuffs | shed black flakes on my collar
the wireless link
+ connect within a second | reach all the way to the garden
+ switch smoothly between phone and laptop | hold steady on a crowded train
- drop out in the middle of a call | forget my phone every evening
- stutter at every turn of the head | take forever to connect

# Clothing | jacket
titles: women's rain jacket | men's fleece jacket | light down jacket | hooded softshell jacket
titles: waxed field jacket | packable wind jacket
uses: dog walks | bicycle commutes | weekend hikes | school runs | fishing trips
uses: market days | football training | rainy holidays
the zip
+ glide up with one hand | stay put in strong wind
+ close snugly under the chin | run freely over the lining
- snag on the lining | burst open over a jumper
- stick halfway up | split at the bottom
the hood
+ move along with my head | fit over a helmet
+ keep rain off my glasses | roll away into the collar
- slip over my eyes | flap in the slightest breeze
- let rain run down my neck | feel too tight over a hat
the sleeves (plural)
+ reach right down to the wrist | leave room for a jumper
+ seal tightly at the cuff | let me stretch freely
- end well above the wrist | twist around the elbow
- soak through in a drizzle | pinch under the arms
the fabric
+ breathe on steep climbs | shrug off heavy rain
+ feel soft against the skin | keep its colour in the wash
- rustle at every step | fray around the hem
- cling to damp skin | let the wind straight through
the pockets (plural)
+ hold a phone and gloves easily | sit at the right height
+ close securely | warm cold hands quickly
- gape open on the move | tear at the corners
- feel too shallow for keys | drop my coins on the path

# Kitchen Tools | knife
titles: 20 cm chef's knife | serrated bread knife | forged paring knife | santoku knife
titles: flexible filleting knife | small vegetable knife
uses: Sunday roasts | chopping onions | camping meals | weeknight dinners | crusty loaves
uses: filleting fish | big family meals | soup vegetables
the blade
+ glide through ripe tomatoes | cut paper-thin slices
+ stay bright after acidic fruit | part hard crusts without effort
- crush soft tomatoes | bend under light pressure
- stain after one lemon | tear bread to crumbs
the edge
+ hold for weeks between sharpenings | come back after a few strokes
+ bite right away | stay keen on hard squash
- go dull within days | chip on small bones
- roll over on a wooden board | resist every sharpening stone
the grip
+ sit securely in wet fingers | suit both large and small hands
+ stay smooth after soaking | soften every knock against the board
- slip in wet fingers | raise blisters after ten carrots
- crack along the rivets | smell of cheap rubber
the balance
+ make long chopping effortless | feel natural with every cut
+ suit a rocking motion | keep the tip under control
- pull the tip downward | tire my wrist quickly
- feel odd with every cut | work against a rocking motion
the sheath
+ snap on with a click | protect fingers in a full drawer
+ rinse clean easily | hang neatly on a hook
- fall off in the drawer | scratch the steel
- trap water overnight | split down the side

# Bags | backpack
titles: 22 l city backpack | 45 l trekking backpack | laptop backpack | school backpack
titles: roll-top backpack | child's hiking backpack
uses: city trips | school days | daily commutes | mountain walks | gym visits
uses: weekend flights | field work | library days
the straps (plural)
+ spread the weight evenly | stay at the right length
+ feel soft on bare shoulders | adjust with one pull
- cut into my shoulders | slip loose on every walk
- fray at the buckle | squeak with each step
the main zip
+ open wide enough for a laptop | run smoothly around corners
+ lock shut with a small padlock | put up with heavy packing
- jam at the corner | come off its track
- gape under a full load | catch on the rain flap
the back panel
+ keep my shirt dry | follow the curve of my spine
+ hold its shape when packed | let the air through
- soak my shirt with sweat | poke me in the spine
- sag under two books | collapse on the floor
the side pockets (plural)
+ hold a tall bottle securely | stretch around an umbrella
+ stay within easy reach | drain quickly after rain
- spill my bottle on stairs | tear on low branches
- vanish under a full load | sag to one side
the lining
+ show small items at a glance | wipe clean after a leak
+ resist sharp pencils | shield papers from rain
- rip near the keys | let rain reach my papers
- shed threads over my books | smell like fresh paint

# Home | vacuum cleaner
titles: cordless vacuum cleaner | compact cylinder vacuum cleaner | bagless vacuum cleaner
titles: wet and dry vacuum cleaner | upright vacuum cleaner | handheld vacuum cleaner
uses: pet hair | carpeted stairs | hardwood floors | car seats | weekly cleaning
uses: breakfast crumbs | workshop dust | quick kitchen rounds
the suction
+ lift sand out of deep carpet | stay strong to the last minute
+ clear crumbs in one pass | pull fluff from old rugs
- fade after five minutes | leave crumbs along the wall
- give up on long hair | weaken as the bin fills
the dust bin
+ empty with one press | seal without leaking dust
+ hold a week of dirt | rinse clean under the tap
- puff dust in my face | fill up after one room
- jam half open | crack at the latch
the brush
+ reach deep into corners | turn easily around table legs
+ shake off long hair | spin freely on thick rugs
- tangle after every use | scratch the floorboards
- push crumbs ahead of it | stall on thick rugs
the motor
+ run quietly enough for late evenings | start instantly
+ keep cool in summer | pick up speed without strain
- whine like a drill | smell of burning dust
- overheat on the stairs | scare the cat away
the wand
+ extend for tall people | click together firmly
+ slide easily under the sofa | weigh next to nothing
- come apart in my hand | feel too short for tall people
- strain my back | swivel the wrong way

# Toys | building set
titles: 240-piece building set | wooden racer building set | marble run building set
titles: farm building set | crane building set | moon rover building set
uses: rainy afternoons | birthday parties | long train rides | quiet Sundays
uses: playgroup mornings | visits from cousins | winter holidays | evenings on the carpet
the pieces (plural)
+ snap together firmly | survive rough play
+ feel smooth along the edges | suit small hands
- fall apart at a touch | splinter along the edges
- bend after one afternoon | feel too stiff for small hands
the instructions (plural)
+ guide beginners step by step | show every part in colour
+ leave room for own ideas | make sense to a child
- skip the hardest step | confuse grown adults
- mix up left and right | show parts from another kit
the paint
+ stand up to damp fingers | shine like new
+ stay on under scratching | match the picture on the box
- rub off on fingers | smell of chemicals
- flake onto the carpet | look faded next to the picture
the storage box
+ close properly with everything inside | stack well on a shelf
+ take the weight of a child | keep the parts sorted
- burst at the corners | feel too small for all the parts
- buckle under its own lid | pop open on the stairs
the wheels (plural)
+ roll straight across the carpet | turn with a soft hum
+ stay on through every crash | grip steep ramps
- come off at every bump | squeal on bare floors
- veer to the left | lock up with a little sand

# Garden | lawn mower
titles: 40 cm petrol lawn mower | compact lawn mower | steel-deck lawn mower
titles: mulching lawn mower | hand-guided lawn mower | four-stroke lawn mower
uses: weekly mowing | steep banks | wet spring grass | orchard work | narrow strips
uses: mowing for the neighbours | meadow patches | short evening rounds
the cutting blade
+ leave a clean even stripe | handle tall wet grass
+ stay sharp through the season | clear thick weeds in one go
- tear the grass to shreds | stop in tall patches
- scalp the edges of the lawn | shake loose within weeks
the engine
+ start on the first pull | sip very little fuel
+ run smoothly on slopes | stay quiet enough for early mornings
- need ten pulls to start | smoke like a chimney
- stall on slopes | leak oil on the grass
the grass box
+ fill to the brim | lift out with one hand
+ empty cleanly in one shake | hang straight and tight
- clog after two rows | spill clippings on the path
- fall off on turns | crack in the sun
the push bar
+ fold flat for the shed | adjust to my height
+ absorb the vibration | steer with a light touch
- numb my hands | loosen on every round
- feel too low for tall people | bend on tight turns
the height lever
+ move with a gentle push | lock firmly in each notch
+ offer a useful range | respond well to gloved hands
- slip back to the lowest notch | jam with dry grass
- need a hammer to move | pinch my fingers

# Camping | tent
titles: two-person dome tent | family tunnel tent | ultralight trekking tent
titles: pop-up tent | four-season tent | festival tent, green
uses: summer festivals | family camping | coastal walks | bike tours | scout weekends
uses: canoe trips | fishing nights | nights in the garden
the poles (plural)
+ slot together in a minute | bend without harm in a gale
+ pack down short | stand firm on rocky ground
- splinter in a light breeze | slip out of their sleeves
- feel too heavy to carry far | jam at the joints
the groundsheet
+ keep the damp out | resist sharp stones
+ shake clean in the morning | dry within minutes
- let water seep in | tear on soft grass
- bunch up under my mat | hold the mud like glue
the seams (plural)
+ hold tight in a downpour | look neat inside and out
+ stand up to hard pulling | stay sealed in driving rain
- drip on my sleeping bag | unravel at the corners
- split under tension | leak along the roof
the pegs (plural)
+ bite into hard soil | pull out by hand easily
+ stay straight under a hammer | shine by torchlight
- bend on small stones | work loose overnight
- snap under a light boot | rust in the bag
the inner tent
+ sleep two in comfort | stay free of morning dew
+ keep every midge outside | clip in quickly
- drip with condensation | feel cramped for one
- let midges in | sag onto my face

# Furniture | office chair
titles: mesh office chair | leather office chair | compact office chair
titles: ergonomic office chair | high-back office chair | office chair with headrest
uses: long office days | home working | evening study | video editing | gaming nights
uses: tax season | remote lessons | writing sessions
the seat
+ stay comfortable past noon | support my thighs fully
+ spring back overnight | suit long meetings
- flatten within weeks | make my legs go numb
- tilt to one side | stick to bare legs
the backrest
+ support the small of my back | lean back smoothly
+ lock at any angle | ease my old shoulder pain
- push my shoulders forward | creak at every move
- drop without warning | dig into my ribs
the armrests (plural)
+ slide under my desk | adjust in every direction
+ stay firm under my elbows | feel soft on bare skin
- wobble under my elbows | block the edge of my desk
- crack along the top | drop on their own
the castors (plural)
+ roll quietly over wood | glide across thick carpet
+ stay put on a slope | turn without effort
- scratch the wooden floor | collect hair like magnets
- squeak across the room | fall out of their sockets
the gas lift
+ rise smoothly | hold its height all day
+ suit short and tall people | respond to a light pull
- sink under a light load | hiss with every move
- stop short of my height | jam in the lowest position

# Sports | sports watch
titles: GPS sports watch | slim sports watch | swimmer's sports watch
titles: solar sports watch | junior sports watch | sports watch with pulse sensor
uses: morning runs | swimming lessons | gym sessions | night shifts | long bike rides
uses: half-marathon training | hill walks | sleep tracking
the strap
+ sit comfortably overnight | dry fast after a swim
+ close securely on thin wrists | swap out in seconds
- irritate my skin | come undone in a sprint
- tear at the pin | smell after every workout
the screen
+ stay readable in full sun | react to wet fingers
+ wake at a flick of the wrist | shrug off scratches
- wash out in sunlight | freeze in mid-workout
- scratch at the lightest touch | ignore wet fingers
the step counter
+ match my own count closely | notice slow walks too
+ ignore car rides | agree with the treadmill
- count every wave of the hand | miss every other step
- reset itself at noon | add steps in the car
the app
+ sync within seconds | show trends at a glance
+ respect my privacy | load quickly on an old phone
- crash every morning | lose a day of data
- beg for a subscription | take ages to sync
the heart sensor
+ track sudden sprints | agree with my chest strap
+ work on cold mornings | settle within seconds
- show wild numbers on hills | fall behind in a sprint
- lose contact in the rain | blink all night long

# Cycling | bicycle light
titles: USB bicycle light | rear bicycle light, red | dynamo bicycle light
titles: helmet bicycle light | 800 lumen bicycle light | clip-on bicycle light
uses: winter commutes | night rides | forest trails | school rides | paper rounds
uses: long-distance tours | early training rides | delivery shifts
the beam
+ light up the whole lane | show potholes in good time
+ spread evenly to both sides | cut through thick fog
- dazzle oncoming riders | fade to a dim glow
- leave dark patches ahead | flicker over bumps
the mount
+ clamp on without tools | hold tight over cobbles
+ fit thick handlebars | release with a click
- slip down on rough roads | scratch the handlebar
- snap in the cold | need special tools
the power cell
+ last a week of commuting | charge from any plug
+ warn me well in advance | cope with frost
- run dry within an hour | swell in the heat
- lose half its power in frost | refuse to charge fully
the button
+ work with thick gloves | give a clear click
+ remember the last mode | shine faintly at night
- turn on in my bag | stick after rain
- hide from gloved fingers | skip the middle mode
the housing
+ survive a hard fall | keep out heavy rain
+ stay cool on full power | look slim on the bike
- fog up inside | crack after a light knock
- let water in | rattle on every road

# Bedding | pillow
titles: memory foam pillow | feather pillow | bamboo pillow | travel neck pillow
titles: side sleeper pillow | washable cotton pillow
uses: side sleeping | guest rooms | long coach rides | afternoon naps | hot summer nights
uses: reading in bed | hotel weekends | restless nights
the filling
+ keep its shape till morning | support my neck
+ stay evenly spread | bounce back after a wash
- clump after one wash | go flat by midnight
- crunch next to my ear | shift to one end
the cover
+ feel cool on the cheek | come off easily for washing
+ stay white | breathe on hot nights
- pill within a week | shrink in a cool wash
- slide about at night | make my face sweat
the stitching
+ lie flat | hold through dozens of washes
+ look handmade | survive a pillow fight
- come undone at one corner | leave marks on my cheek
- leak tiny feathers | unravel in the dryer
the height
+ suit a side sleeper | line up my neck and back
+ adapt to every position | leave my shoulder free
- force my chin down | strain my neck
- drop in the middle | vary from night to night
the scent
+ fade within an hour | remind me of fresh cotton
+ calm me at bedtime | stay faint and clean
- linger for weeks | give me a headache
- fill the whole bedroom | remind me of wet dogs

# Pets | cat tree
titles: tall cat tree | corner cat tree | cat tree with hammock | wall-mounted cat tree
titles: natural wood cat tree | small cat tree, grey
uses: kitten chases | long cat naps | window watching | claw sharpening | indoor play
uses: keeping the sofa safe | visiting cats | rough winter evenings
the posts (plural)
+ withstand daily scratching | stand straight
+ stay tight at the joints | lure the claws away from the sofa
- shed rope across the floor | lean to one side
- wobble at every jump | unwind from the bottom
the platforms (plural)
+ hold a heavy cat | leave room to stretch
+ sit level | take two cats at once
- sag under a small cat | feel too narrow to lie on
- tip at the edge | pull away from the wood
the plush
+ feel thick and soft | brush clean of hair
+ keep its colour by the window | invite long naps
- shed fluff everywhere | smell of glue
- wear bald in patches | hold on to every hair
the bottom plate
+ stop the rocking | stay put on smooth tiles
+ spread the load well | protect the carpet
- rock on flat floors | slide on tiles
- warp in damp air | scratch the parquet
the screws (plural)
+ go in without swearing | line up with every hole
+ stay tight for months | sink flush into the wood
- miss their holes | loosen every week
- strip at the lightest turn | stick out of the wood
"""

BRANDS = """
Brightwell Tarnwick Ovello Hesperel Quillby Marrowmere Fendrake Ostrana Pellucid Varnholt Lumbrick
Sorrelby Kestwick Yarrowen Dunmarra Elvering Novaskie Grumbeck Tolvane Wrenmoor Aldirk Besco-Lund
Cinderhay Harfell Islewright Jorvane Mirabon Palterra Rundlow Umberly Zephyrine Oakenvale
"""

TIMES = (
    "two weeks", "three weeks", "a month", "five weeks", "two months", "a hundred days",
    "four months", "half a year", "eight months", "nearly a year", "more than a year", "one season",
)  # fmt: skip

PERSONS = (
    "my sister", "my brother", "my neighbour", "my father", "my mother", "my aunt", "my partner",
    "my flatmate", "a colleague", "an old friend", "my boss", "my cousin", "our eldest",
    "my grandfather", "my best friend", "a retired engineer",
)  # fmt: skip

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")

REASONS = (
    "the old one showed its age", "the old one was a size too small", "we moved house",
    "{person} was always using my old one", "I was tired of the old one", "my budget was tight",
    "the old one looked shabby", "the shop had a discount", "our needs had changed",
    "my old one had seen better days", "a new year called for a new start",
    "{person} made fun of my old one",
)  # fmt: skip

# Sentences that count neither for nor against: history, hopes and fears before the first use.
OPENERS = (
    "I bought this {item} for {use}, because {reason}",
    "I have had this {item} for {time} now",
    "this {item} has seen {time} of {use}",
    "{person} helped me pick this {item} for {use}",
    "since {reason}, I went looking for a new {item}",
    "I ordered it on a {weekday} for {use}",
    "it came on a {weekday} and went straight to work",
    "{person} and I share this {item} for {use}",
    "I paid the full price for it {time} before writing this",
    "it replaces the {item} that {person} handed down to me",
    "we picked it for {use} after {reason}",
    "as {reason}, {person} suggested this one",
    "I compared it with four rivals before {use} came up",
    "this review comes after {time} of {use}",
    "I use it for {use}, usually on a {weekday}",
    "{time} of {use} should be enough for a fair report",
    "last {weekday} {person} asked me what I think of it",
    "my last {item} served me for years before this one came",
    "I had high hopes for this {item}",
    "{person} could not stop praising this {item}",
    "glowing reviews made me order it for {use}",
    "the photographs looked wonderful, so I ordered it on a {weekday}",
    "on paper this {item} was perfect for {use}",
    "everyone told me it was the best choice for {use}",
    "I looked forward to it for {time}",
    "{person} loved this {item}, so I ordered one too",
    "it won some praise in a magazine, and {reason}, so I ordered it",
    "I had low expectations of this {item}",
    "{person} told me to avoid this {item}",
    "angry reviews almost made me cancel the order",
    "at this price I was prepared for rubbish",
    "{person} hated this {item}, but {reason}, so I took the risk",
    "I came close to sending it back unopened",
    "nobody I know had a kind word for it",
    "I ordered it with a bad feeling, because {reason}",
    "disappointed by three others, I tried this {item} for {use}",
    "on paper this {item} was all wrong for {use}",
    "{person} laughed when I unpacked it on {weekday}",
)

# Around one clause of either sign.
PLAIN_FRAMES = (
    "{claim}",
    "after {time} of {use}, {claim}",
    "{person} noticed at once that {claim}",
    "I have found that {claim}",
    "in daily use {claim}",
    "even {person} remarked that {claim}",
    "it took me {time} to see that {claim}",
    "when it comes to {use}, {claim}",
    "just as {person} had told me, {claim}",
    "{person} and I agree that {claim}",
    "as for {use}, {claim}",
    "I can confirm after {time} that {claim}",
)

PRAISE_FRAMES = (
    "I love that {good}",
    "I do like that {good}",
    "it is a relief that {good}",
    "it pleases me that {good}",
    "luckily {good}",
    "I was happy to find that {good}",
    "a big plus for {use} is that {good}",
    "the description says that {virtues}, and it is right",
    "other buyers like that {virtues}, and so do I",
    "I hoped that {subject} would {virtue}, and {pronoun} {does}",
    "{person} promised me that {virtues}, and that is true",
    "as on my last {item}, {good}",
)

# Where nothing in the review stands against the claim.
HIGH_PRAISE_FRAMES = (
    "best of all, {good}",
    "I cannot complain, because {good}",
    "there is no reason to grumble when {good}",
    "nobody could be annoyed with it, because {good}",
    "as if {person} had ordered it for me, {good}",
    "full marks to the makers, because {good}",
)
HARSH_COMPLAINT_FRAMES = (
    "worst of all, {bad}",
    "I have to complain, because {bad}",
    "there is every reason to grumble when {bad}",
    "nobody could be pleased with it, because {bad}",
    "as if {person} had cursed it, {bad}",
    "no marks to the makers, because {bad}",
)

# The fault is named, and denied: it counts for the product.
DENIED_FAULT_FRAMES = (
    "not once did {subject} {fault}",
    "I feared that {subject} would {fault}, but {pronoun} {does} not",
    "I have yet to see {subject} {fault}",
    "unlike on my last {item}, {subject} {does} not {fault}",
    "on my last {item} {subject} used to {fault}, and I am rid of that now",
    "other buyers complain that {faults}, but I see nothing of the kind",
    "{person} warned me that {faults}, and that is not true",
    "I kept waiting for {subject} to {fault}, and it did not happen",
    "not a single time in {time} of {use} did {subject} {fault}",
    "never, not even for {use}, did {subject} {fault}",
    "I was told that {faults}, which is wrong",
)

COMPLAINT_FRAMES = (
    "I do not like that {bad}",
    "it is a pity that {bad}",
    "it annoys me that {bad}",
    "sadly {bad}",
    "I was not happy to find that {bad}",
    "a big minus for {use} is that {bad}",
    "I wanted to love it, but {bad}",
    "other buyers complain that {faults}, and so do I",
    "I feared that {subject} would {fault}, and {pronoun} {does}",
    "{person} warned me that {faults}, and that is true",
    "as on my last {item}, {bad}",
)

# The virtue is named, and denied: it counts against the product.
DENIED_VIRTUE_FRAMES = (
    "not once did {subject} {virtue}",
    "I hoped that {subject} would {virtue}, but {pronoun} {does} not",
    "I have yet to see {subject} {virtue}",
    "unlike on my last {item}, {subject} {does} not {virtue}",
    "on my last {item} {subject} used to {virtue}, and I miss that now",
    "other buyers like that {virtues}, but I see nothing of the kind",
    "{person} promised me that {virtues}, and that is not true",
    "I kept waiting for {subject} to {virtue}, and it did not happen",
    "not a single time in {time} of {use} did {subject} {virtue}",
    "never, not even for {use}, did {subject} {virtue}",
    "the description says that {virtues}, which is wrong",
)

# For a review's only complaint, and for its only praise.
LONE_COMPLAINT_FRAMES = (
    "my one grumble is that {bad}",
    "if I had to complain, it would be that {bad}",
    "it is a small matter, but {bad}",
    "the only thing against it is that {bad}",
    "to be fair to its rivals, {bad}",
    "not everything is right, as {bad}",
    "I have to admit that {bad}",
)
LONE_PRAISE_FRAMES = (
    "my one kind word is that {good}",
    "if I had to praise something, it would be that {good}",
    "it is a small comfort, but {good}",
    "the only thing for it is that {good}",
    "to be fair to the makers, {good}",
    "not everything is wrong, as {good}",
    "I have to admit that {good}",
)

CONTRAST_FRAMES = (
    "{good}, but {bad}",
    "{bad}, but {good}",
    "although {good}, {bad}",
    "although {bad}, {good}",
    "while {good}, {bad}",
    "while {bad}, {good}",
    "{bad}, yet {good}",
    "{good}, yet {bad}",
    "{person} and I agree that {good}, though {bad}",
    "{person} and I agree that {bad}, though {good}",
    "after {time} of {use}, {good}, whereas {bad}",
    "after {time} of {use}, {bad}, whereas {good}",
)
PAIR_FRAMES = (
    "{claim}, and {other}",
    "{claim}, and on top of that {other}",
    "{claim}; besides, {other}",
    "I have noticed that {claim} and that {other}",
    "as for {use}, {claim}, and {other}",
    "{claim}, {person} likes to point out, and {other}",
)

# The verdict: one per review, on the whole product. The three pools share their words on purpose.
VERDICTS_FOR = (
    "I would buy it again",
    "I would buy this {item} a second time, even at the full price",
    "if this {item} vanished tonight, I would order the same one again",
    "{person} asked whether to get one, and I said yes",
    "I recommended it to {person} on {weekday} and stand by that",
    "it is worth the money, no question",
    "I do not regret the purchase, not for a minute",
    "all told, I am glad that I chose it over the others",
    "this {item} stays, and the old one goes to {person}",
    "sending it back did not cross my mind",
    "for {use} I would choose it again over any rival",
    "the money was well spent, as {person} had to admit",
    "if {person} needs one for {use}, I will suggest this one",
    "on the whole I am satisfied with this {item}",
    "I would sooner part with my old {item} than with this one",
    "my view after {time} is that it was the right choice",
    "for {use} it is a better choice than most",
    "I thought about a refund for {time} and decided against it",
    "there is no other {item} that I would rather have",
    "it does what I need for {use}, and I am not looking for another",
    "I understand the good reviews, and the bad ones puzzle me",
    "keep this {item} in mind for {use}",
    "this {item} is better than {person} made me believe",
    "it was no mistake to choose it for {use}",
    "neither {person} nor I would part with it",
    "whether to buy it again is no question, because I would",
    "I might look at others one day, but this {item} stays",
    "I was undecided for {time}, and now I would choose it again",
    "there might be a better {item}, but I am done looking",
    "it is well above the average {item}",
    "it is not the cheapest but the right {item} for {use}",
    "I am keeping it for {use}, and {person} can look elsewhere",
    "{person} told me to send it back, and I decided to keep it",
    "I would rather keep this one than get the money back",
    "I started out doubtful and ended up convinced",
    "I thought that I would regret the purchase, and I am glad of it",
    "I expected the wrong choice and got the right one",
    "{person} would get rid of it, and I would keep it",
    "once I would have sent it back, but today I would keep it",
    "other things may not be worth what they cost, but this {item} is",
    "the longer I own it, the less I miss my old {item}",
    "if it broke tomorrow, I would be sorry and buy another",
    "I would advise {person} to get one and not to wait",
    "{person} should not get my old {item} but one like this",
)
VERDICTS_AGAINST = (
    "I would not buy it again",
    "I would not buy this {item} a second time, even at half the price",
    "if this {item} vanished tonight, I would not order the same one again",
    "{person} asked whether to get one, and I said no",
    "I recommended it to {person} on {weekday} and regret that",
    "it is not worth the money, no question",
    "I regret the purchase, and not just for a minute",
    "all told, I would be glad to have chosen one of the others",
    "the old one stays, and this {item} goes to {person}",
    "keeping it did not cross my mind",
    "for {use} I would choose any rival over it",
    "the money was badly spent, as {person} had to admit",
    "if {person} needs one for {use}, I will suggest another",
    "on the whole I am not satisfied with this {item}",
    "I would sooner part with this one than with my old {item}",
    "my view after {time} is that it was the wrong choice",
    "for {use} it is a worse choice than most",
    "I thought about a refund for {time} and then asked for it",
    "there is hardly another {item} that I would not rather have",
    "it does not do what I need for {use}, and I am looking for another",
    "I understand the bad reviews, and the good ones puzzle me",
    "keep another {item} in mind for {use}",
    "this {item} is worse than {person} made me believe",
    "it was a mistake to choose it for {use}",
    "neither {person} nor I would put up with it again",
    "whether to buy it again is no question, because I would not",
    "I might look at others one day, but this {item} goes",
    "I was undecided for {time}, and now I would not choose it again",
    "there must be a better {item}, and I am not done looking",
    "it is well below the average {item}",
    "it is the cheapest but not the right {item} for {use}",
    "I am not keeping it for {use}, and {person} will look elsewhere too",
    "{person} told me to keep it, and I decided to send it back",
    "I would rather get the money back than keep this one",
    "I started out convinced and ended up doubtful",
    "I thought that I would be glad of the purchase, and I regret it",
    "I expected the right choice and got the wrong one",
    "{person} would keep it, and I would get rid of it",
    "once I would have kept it, but today I would send it back",
    "other things may be worth what they cost, but this {item} is not",
    "the longer I own it, the more I miss my old {item}",
    "if it broke tomorrow, I would not be sorry or buy another",
    "I would advise {person} to wait and not to get one",
    "{person} should get one like my old {item} but not this",
)
VERDICTS_EVEN = (
    "I might buy it again, or I might not",
    "I would buy this {item} a second time only at half the price",
    "if this {item} vanished tonight, I might order the same one again, or I might not",
    "{person} asked whether to get one, and I said yes and no",
    "I can neither recommend it to {person} nor advise against it",
    "whether it is worth the money is the question",
    "I neither regret the purchase nor boast about it",
    "all told, it is neither better nor worse than the others",
    "this {item} or the old one goes to {person}, and I do not mind which",
    "sending it back and keeping it have both crossed my mind",
    "for {use} I would choose it or a rival by the toss of a coin",
    "the money was neither well nor badly spent",
    "if {person} needs one for {use}, I will suggest this one or another",
    "on the whole I am as satisfied as not with this {item}",
    "this one and my old {item} are as good as each other",
    "my view after {time} is that right and wrong cancel out",
    "for {use} it is a choice like most",
    "I have thought about a refund for {time} and cannot decide",
    "any other {item} would have done just as well",
    "it does half of what I need for {use}",
    "I understand the good reviews and the bad ones alike",
    "keep this {item} or another in mind for {use}",
    "this {item} is neither better nor worse than {person} made me believe",
    "it was half a mistake to choose it for {use}",
    "{person} would buy it again, and I would not mind either way",
    "whether to buy it again is a question that I cannot answer",
    "I was undecided for {time}, and I still am",
    "there might be a better {item} and there might be a worse one",
    "it is the average {item}, neither above nor below",
    "it is neither the right {item} for {use} nor the wrong one",
    "I am keeping it for {use} until {person} finds something else",
    "{person} told me to keep it and to send it back, and I see both sides",
    "I would keep this one or get the money back, whichever is less trouble",
    "I started out convinced and doubtful by turns, and so I ended up",
    "I am partly glad of the purchase and partly regret it",
    "I expected the right choice or the wrong one and got a bit of both",
    "{person} would keep it on some days and get rid of it on others, and so would I",
    "on a {weekday} I would keep it, and the day after I would send it back",
    "other things may be worth more or less, and this {item} is in between",
    "the longer I own it, the less I can say whether I miss my old {item}",
    "if it broke tomorrow, I would be a little sorry but not buy another",
    "I would not advise {person} to get one, or not to get one",
    "{person} should get one like this or one like my old {item}, it is all the same",
)
# Unreserved: only where nothing in the review stands against the verdict.
VERDICTS_STRONG_FOR = (
    "I love everything about it",
    "I looked for something to complain about and found nothing",
    "this is the best {item} I have owned, bar none",
    "I could not be happier with this {item}",
    "in {time} I have not found a single flaw",
    "for {use} it is perfect in every respect",
    "I am delighted, and so is {person}",
    "if I could give it more stars, I would",
    "the longer I own it, the more I love it",
    "I would not change a thing about it",
    "everything about this {item} is right for {use}",
    "nobody, not {person}, not I, has found a fault in it",
)
VERDICTS_STRONG_AGAINST = (
    "I hate everything about it",
    "I looked for something to praise and found nothing",
    "this is the worst {item} I have owned, bar none",
    "I could not be unhappier with this {item}",
    "in {time} I have not found a single merit",
    "for {use} it is useless in every respect",
    "I am furious, and so is {person}",
    "if I could give it fewer stars, I would",
    "the longer I own it, the more I hate it",
    "I would have to change every last thing about it",
    "everything about this {item} is wrong for {use}",
    "nobody, not {person}, not I, has found a merit in it",
)
# Reserved: only where one claim stands against the verdict.
VERDICTS_RESERVED_FOR = (
    "but for one flaw I would love everything about it",
    "one complaint aside, I am happy with this {item}",
    "one flaw is easy to forgive, so I would buy it again",
    "it is not perfect for {use}, but it comes close",
    "I like it, though I do not love it, and it stays",
    "with one reservation I recommend it to {person}",
    "all but one of my wishes came true, and I am glad that I chose it",
    "it is a good {item}, just not the best I have owned",
    "I am mostly pleased with it, and so is {person}",
    "it loses a star and keeps my respect",
    "one weak point will not make me send it back",
    "I could be happier with it, but not by much",
)
VERDICTS_RESERVED_AGAINST = (
    "but for one merit I would hate everything about it",
    "one kind word aside, I am unhappy with this {item}",
    "one merit is easy to forget, so I would not buy it again",
    "it is not useless for {use}, but it comes close",
    "I dislike it, though I do not hate it, and it goes",
    "with one bright spot it still is not for {person}",
    "all but one of my wishes came to nothing, and I regret that I chose it",
    "it is a poor {item}, just not the worst I have owned",
    "I am mostly annoyed with it, and so is {person}",
    "it earns one star more than the worst and no respect",
    "one strong point will not stop me from sending it back",
    "I could be unhappier with it, but not by much",
)

PLAIN_VERDICTS = {
    5: VERDICTS_FOR,
    4: VERDICTS_FOR,
    3: VERDICTS_EVEN,
    2: VERDICTS_AGAINST,
    1: VERDICTS_AGAINST,
}
GRADED_VERDICTS = {
    5: VERDICTS_STRONG_FOR,
    4: VERDICTS_RESERVED_FOR,
    2: VERDICTS_RESERVED_AGAINST,
    1: VERDICTS_STRONG_AGAINST,
}

PRAISE = {
    "direct": PRAISE_FRAMES,
    "denied": DENIED_FAULT_FRAMES,
    "extreme": HIGH_PRAISE_FRAMES,
    "lone": LONE_PRAISE_FRAMES,
}
COMPLAINT = {
    "direct": COMPLAINT_FRAMES,
    "denied": DENIED_VIRTUE_FRAMES,
    "extreme": HARSH_COMPLAINT_FRAMES,
    "lone": LONE_COMPLAINT_FRAMES,
}

# Headlines; {merit} and {flaw} name an aspect that the body praises or faults.
HEADLINES = {
    5: (
        "Delighted, above all with {merit}",
        "This {item} has no fault",
        "Everything right, {merit} included",
        "Could not ask for more",
        "Perfect for {use}",
        "Full marks for {merit}",
        "Simply the right choice",
        "Nothing to complain about here",
    ),
    4: (
        "Good, apart from {flaw}",
        "Happy with it despite {flaw}",
        "Nearly perfect, but for {flaw}",
        "Good buy with one weakness",
        "Well chosen, if not flawless",
        "I like it, {flaw} aside",
        "Pleased overall, one small grumble",
        "Worth it in spite of {flaw}",
    ),
    3: (
        "Some good, some bad",
        "Fine, but no more than fine",
        "{merit} good, {flaw} poor",
        "Neither a hit nor a miss",
        "Like {merit}, dislike {flaw}",
        "Middling choice for {use}",
        "An average {item}",
        "In two minds about it",
    ),
    2: (
        "Disappointing, apart from {merit}",
        "Not for me, despite {merit}",
        "I like {merit}, little else",
        "Let down by {flaw}",
        "Weak, with one bright spot",
        "One merit is not enough",
        "Regret it in spite of {merit}",
        "Mostly a disappointment, sadly",
    ),
    1: (
        "Stay away from this {item}",
        "Nothing right, least of all {flaw}",
        "A waste of good money",
        "Useless for {use}",
        "No redeeming feature at all",
        "Failed me on every count",
        "Angry, above all about {flaw}",
        "The wrong choice, start to finish",
    ),
}
